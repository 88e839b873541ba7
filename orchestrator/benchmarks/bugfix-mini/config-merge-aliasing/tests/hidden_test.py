import copy
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

sys.path.insert(0, os.getcwd())

TEST_LAYER = {"+features": ["export"], "limits": {"users": 3}, "rows": [{"tags": ["x"]}]}
ACME = {
    "+features": ["billing"],
    "mail": {"footer": {"+lines": ["Acme"]}},
    "own": {"deep": [1]},
    "limits": {"users": 50},
}
BIRCH = {"mail": {"footer": {"logo": None}}}


def containers(value):
    """The ids of all dicts and lists in a value."""
    found = set()
    if isinstance(value, (dict, list)):
        found.add(id(value))
        for inner in value.values() if isinstance(value, dict) else value:
            found |= containers(inner)
    return found


class Merging(unittest.TestCase):
    def setUp(self):
        self.merge = importlib.import_module("app.merge").merge

    def check(self, expected, *layers):
        before = copy.deepcopy(layers)
        result = self.merge(*layers)
        self.assertEqual(result, expected)
        self.assertEqual(layers, before)
        for layer in layers:
            self.assertFalse(containers(result) & containers(layer))
        return result

    def test_nested_dicts(self):
        self.check(
            {"a": {"b": {"c": 2, "d": 1}}, "e": 1}, {"a": {"b": {"c": 1, "d": 1}}, "e": 1}, {"a": {"b": {"c": 2}}}
        )

    def test_replaced_and_new_values(self):
        self.check({"a": {"x": [1]}, "b": [[2], {"y": [3]}]}, {"a": 1}, {"a": {"x": [1]}, "b": [[2], {"y": [3]}]})

    def test_lists_appended_to(self):
        self.check({"a": [1, {"b": [2]}, [3], {"c": []}]}, {"a": [1, {"b": [2]}]}, {"+a": [[3]]}, {"+a": [{"c": []}]})

    def test_lists_started(self):
        self.check({"a": [{"b": 1}, 2]}, {}, {"+a": [{"b": 1}]}, {"+a": [2]})

    def test_no_overlay(self):
        self.check({"a": {"b": [{}]}}, {"a": {"b": [{}]}})

    def test_later_overlays_do_not_change_earlier_ones(self):
        self.check({"a": {"b": 1, "c": 2}, "l": [1, 2]}, {}, {"a": {"b": 1}, "l": [1]}, {"a": {"c": 2}, "+l": [2]})

    def test_removal(self):
        self.check({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}, "d": []}, {"a": {"c": None}, "d": None, "e": None})

    def test_a_layer_used_twice(self):
        layer = {"+a": [1], "b": {"c": [1]}}
        self.check({"a": [1, 1], "b": {"c": [1]}}, {}, layer, layer)

    def test_other_values_are_the_same_object(self):
        lock, stream, pair = threading.Lock(), sys.stderr, ([1], 2)
        result = self.merge({"a": {"lock": lock}, "pair": pair}, {"b": [stream], "a": {"c": 1}})
        self.assertIs(result["a"]["lock"], lock)
        self.assertIs(result["b"][0], stream)
        self.assertIs(result["pair"], pair)

    def test_the_order_of_keys_stays(self):
        result = self.merge({"z": 1, "a": {"y": 1, "b": 1}, "m": 1}, {"a": {"b": 2, "x": 2}, "new": 2, "z": 2})
        self.assertEqual(list(result), ["z", "a", "m", "new"])
        self.assertEqual(list(result["a"]), ["y", "b", "x"])

    def test_three_layers(self):
        self.check({"a": 3, "b": [1, 2, 3]}, {"a": 1, "b": [1]}, {"a": 2, "+b": [2]}, {"a": 3, "+b": [3]})


class Loading(unittest.TestCase):
    def setUp(self):
        self.loader = importlib.import_module("app.loader")
        self.Settings = importlib.import_module("app.settings").Settings
        self.defaults = importlib.import_module("app.defaults").DEFAULTS
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder.name)
        environment = os.environ.get("APP_ENV")
        os.environ["APP_ENV"] = "here" + Path(folder.name).name
        self.addCleanup(os.environ.update, {"APP_ENV": environment or "test"})
        Path("config/tenants").mkdir(parents=True)
        # Names of their own for every test: what is read once stays in memory.
        self.acme, self.birch = "acme" + Path(folder.name).name, "birch" + Path(folder.name).name
        self.write(os.environ["APP_ENV"], TEST_LAYER)
        self.write(f"tenants/{self.acme}", ACME)
        self.write(f"tenants/{self.birch}", BIRCH)

    def write(self, name, content):
        Path(f"config/{name}.json").write_text(json.dumps(content), encoding="utf-8")

    def expected(self):
        return (["search", "export", "billing"], ["search", "export"])

    def test_tenants_do_not_see_each_other(self):
        acme, birch = self.loader.load(self.acme), self.loader.load(self.birch)
        self.assertEqual((acme.get("features"), birch.get("features")), self.expected())
        self.assertEqual((acme.get("limits.users"), birch.get("limits.users")), (50, 3))
        self.assertEqual(birch.get("mail.footer"), {"lines": ["Kind regards"]})
        self.assertEqual(acme.get("mail.footer"), {"lines": ["Kind regards", "Acme"], "logo": "default.png"})
        self.assertEqual(self.defaults["features"], ["search"])
        self.assertEqual(self.defaults["mail"]["footer"]["logo"], "default.png")

    def test_the_same_tenant_again(self):
        first = self.loader.load(self.acme)
        first.get("own.deep").append(2)
        first.get("rows")[0]["tags"].append("y")
        first.get("features").clear()
        second = self.loader.load(self.acme)
        self.assertEqual(second.get("own"), {"deep": [1]})
        self.assertEqual(second.get("rows"), [{"tags": ["x"]}])
        self.assertEqual(second.get("features"), self.expected()[0])
        self.assertEqual(self.loader.load("nobody").get("rows"), [{"tags": ["x"]}])

    def test_set_is_for_one_object(self):
        first, second = self.loader.load(self.acme), self.loader.load(self.acme)
        first.set("mail.footer.logo", "new.png")
        first.set("limits.users", 99)
        first.set("a.b.c", 1)
        self.assertEqual((first.get("mail.footer.logo"), first.get("a.b.c")), ("new.png", 1))
        for other in (second, self.loader.load(self.acme), self.loader.load(self.birch)):
            self.assertNotEqual(other.get("mail.footer.logo"), "new.png")
            self.assertNotEqual(other.get("limits.users"), 99)
            self.assertIsNone(other.get("a"))

    def test_set_values_stay_the_callers(self):
        first, second = self.loader.load(self.acme), self.loader.load(self.birch)
        value = {"hosts": [{"name": "one"}], "lock": threading.Lock()}
        first.set("plug", value)
        second.set("plug", value)
        value["hosts"][0]["name"] = "changed"
        first.get("plug.hosts").append("more")
        self.assertEqual(first.get("plug.hosts"), [{"name": "one"}, "more"])
        self.assertEqual(second.get("plug.hosts"), [{"name": "one"}])
        self.assertIs(first.get("plug.lock"), value["lock"])

    def test_get_returns_the_settings_own(self):
        settings = self.loader.load(self.acme)
        settings.get("features").append("more")
        self.assertEqual(settings.get("features"), [*self.expected()[0], "more"])
        self.assertEqual(settings.get("no.such", 5), 5)
        self.assertEqual(settings.get("features.x", 5), 5)

    def test_the_logger_is_the_same_object(self):
        self.assertIs(self.loader.load(self.acme).get("logger"), self.defaults["logger"])

    def test_files_are_read_once(self):
        self.loader.load(self.acme)
        self.write(f"tenants/{self.acme}", {"name": "later"})
        self.assertEqual(self.loader.load(self.acme).get("features"), self.expected()[0])


class Command(unittest.TestCase):
    def test_show(self):
        environment = os.environ | {"APP_ENV": "none"}
        command = [sys.executable, "-m", "app", "show", "nobody"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        self.assertEqual(json.loads(done.stdout)["limits"], {"users": 10, "storage_mb": 500})


if __name__ == "__main__":
    unittest.main(verbosity=2)
