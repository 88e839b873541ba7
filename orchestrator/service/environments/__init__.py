"""The files that a devbox starts from: Dockerfiles, installs and Python environments, each built once and cached."""
