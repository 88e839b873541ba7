"""The page: sweeps, a sweep, a trial and a comparison for a browser, live from the run folders; and report.html.

The server renders every number and every word; scripts only place what they are given, so nothing is computed twice.
What agents print, and names, are never markup: see `templates` and `markup`.

    site         the application: who may ask, routes, live events
    watched      sweeps that are looked at, each read once for all who look
    sweep_view   what the pages of all sweeps and of one sweep show
    trial_view   what the page of a trial shows
    compare_view what the page of a comparison shows
    charts       the geometry of the pictures
    markup       logs and patches as markup that is harmless
    templates    the environment of the templates
    static_report  report.html and its Markdown, without a server
"""
