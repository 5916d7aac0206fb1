"""The mutation run itself: mutants are valid and distinct, one is killed, an equivalent one is not."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

from tests.mutation import runner, table
from tests.mutation.coverage import Coverage
from tests.mutation.mutants import Source
from tests.mutation.scope import CHECKS, MODULES, NOT_FORMULAS, ROOT, judging_files

FORMULAS = '''
def move(x, alpha, sigma, nodes, i):
    """alpha + sigma is no formula here."""
    if alpha < 0:
        raise ValueError(f"got {alpha + 1}")
    noise: "1 + 1" = max(sigma, 0.5)
    return alpha * x + sigma**2 * noise, nodes[i]
'''


def mutants(text, operator):
    source = Source("sdekit.samplers.ddim", text)
    return {ast.unparse(source.tree(m)) for m in source.mutants if m.operator == operator}


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        ("sign", {"-(alpha * x + sigma ** 2 * noise)"}),
        ("plus-minus", {"alpha * x - sigma ** 2 * noise"}),
        ("times-over", {"alpha / x + sigma ** 2 * noise", "alpha * x + sigma ** 2 / noise"}),
        ("exponent", {"sigma ** 3 * noise", "sigma ** 1 * noise"}),
        ("constant", {"max(sigma, 1.5)"}),
        ("index", {"nodes[i + 1]", "nodes[i - 1]"}),
        ("extremum", {"min(sigma, 0.5)"}),
        ("coefficient", {"sigma * x", "alpha ** 2 * noise", "max(alpha, 0.5)"}),
        ("comparison", set()),
        ("node", set()),
    ],
)
def test_each_change_is_made_and_no_words_or_guards_are(operator, expected):
    found = mutants(FORMULAS, operator)
    assert len(found) == len(expected)
    for change in expected:
        assert sum(change in text for text in found) == 1, change


def test_comparisons_and_arguments():
    text = "def f(here, ahead, x):\n    return step(here, ahead) if x <= 2 else width(ahead, here)\n"
    assert any("x < 2" in new for new in mutants(text, "comparison"))
    assert {new.split("if")[0].split("return ")[1].strip() for new in mutants(text, "argument")} == {
        "step(ahead, here)",
        "step(here, ahead)",
    }


@pytest.mark.parametrize("module", MODULES)
def test_mutants_compile_and_differ_from_each_other_and_the_source(module):
    source = Source(module)
    assert source.mutants
    assert len({mutant.id for mutant in source.mutants}) == len(source.mutants)
    # One in nine, twelve at most: a tree is built and printed for each.
    some = source.mutants[:: max(9, len(source.mutants) // 12)]
    texts = [ast.unparse(source.tree(mutant)) for mutant in some]
    assert len({*texts, ast.unparse(ast.parse(source.text))}) == len(texts) + 1
    for text in texts:
        compile(text, module, "exec")


def test_the_scope_names_what_exists():
    for module, functions in NOT_FORMULAS.items():
        names = set()
        for node in ast.walk(ast.parse(Source(module).text)):
            if isinstance(node, ast.ClassDef):
                names |= {f"{node.name}.{inner.name}" for inner in node.body if hasattr(inner, "name")}
            elif isinstance(node, ast.FunctionDef):
                names.add(node.name)
        assert functions <= names, module
    assert set(judging_files()) == {f"tests/{name}" for name in CHECKS}


JUDGE = """
import json
from tests.mutation import runner
from tests.mutation.coverage import Coverage
from tests.mutation.mutants import Source
from tests.mutation.processes import forked, preload

preload()
files = ["tests/samplers/test_published.py", "tests/samplers/test_agreement.py"]
runner.judging_files = lambda: files[:1]
source = Source("sdekit.samplers.ddim")
lines = list(range(1, len(source.text.splitlines())))
tests = [
    f"{files[0]}::test_ddim_equation_12[2-0.4]",
    f"{files[1]}::test_ddim_is_the_exponential_integrator_of_first_order[VP]",
]
coverage = Coverage(tests={test: {source.module: lines} for test in tests})


def one(operator, before, after):
    found = [m for m in source.mutants if (m.operator, m.before, m.after) == (operator, before, after)]
    return found[0]


# c = -part clean is wrong where eta > 0; part = 1 leads to part = 1.0 either way; eta = 1 is not the default.
wrong, equivalent = one("sign", "part * clean", "-(part * clean)"), one("comparison", "Gt", "GtE")
at_import = one("constant", "0.0", "1.0")


def work(send):
    def judge(session):
        ready = runner.Session(session, coverage, 1)
        send([ready.judge(source, mutant).killer for mutant in (wrong, equivalent)])

    runner.collect(judge)


found, _ = forked(work)


def late(send):
    def note(mutant, outcome):
        send(outcome.killer)

    runner.judge_at_import(source, [at_import], coverage, 1, note)


print(json.dumps([*found, forked(late)[0]]))
"""


def test_a_wrong_formula_is_killed_and_an_equivalent_one_is_not():
    """In a process that has not imported the library, as the run itself."""
    done = subprocess.run([sys.executable, "-c", JUDGE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wrong, equivalent, at_import = json.loads(done.stdout.splitlines()[-1])
    assert wrong.startswith("tests/samplers/test_published.py::test_ddim_equation_12")
    assert equivalent == ""
    assert at_import.startswith("tests/samplers/test_agreement.py::test_ddim_is_the_exponential")


def test_cases_of_one_test_are_spread_and_checks_are_in_order():
    source = Source("sdekit.samplers.ddim")
    tests = {f"tests/samplers/test_plan.py::test_a[{k:02d}]": [30] for k in range(100)}
    tests |= {
        "tests/samplers/test_published.py::test_b": [30, 31],
        "tests/samplers/test_order.py::test_c": [2],
    }
    coverage = Coverage(tests={test: {source.module: lines} for test, lines in tests.items()})
    mutant = next(mutant for mutant in source.mutants if mutant.line == 30)
    chosen = runner.select(mutant, coverage, 12, whole=False)
    assert len(chosen) == 13
    assert chosen[0].endswith("test_b")
    cases = sorted(int(test.split("[")[1][:-1]) for test in chosen[1:])
    assert cases[0] < 10
    assert cases[-1] > 90
    assert len(runner.select(mutant, coverage, 12, whole=True)) == 14


def test_proofs_name_mutants_that_exist_and_are_not_empty():
    known = set()
    for module in MODULES:
        known |= set(table.places(Source(module)).values())
    proofs = table.proofs() | table.proofs(formula=False)
    assert set(proofs) <= known, sorted(set(proofs) - known)
    assert all(len(proof) > 20 for proof in proofs.values())


def test_the_table_counts_what_it_lists():
    data = table.read()
    counts = table.summary(data)
    assert counts["killed"] + counts["survived"] == counts["judged"] <= counts["mutants"]
    text = table.markdown(data)
    assert f"{counts['killed']} of the {counts['judged']} mutants judged" in text["total"]
    left = counts["mutants"] - counts["judged"]
    assert (f"{left} more mutants of these modules are not judged" in text["total"]) == bool(left)
    assert text["survivors"].count("\n| `") == counts["survived"]
    assert text["aside"].count("\n| `") == len(table.proofs(formula=False))


def test_enough_are_killed_and_no_survivor_is_open():
    counts = table.summary(table.read())
    assert counts["killed"] >= table.LEAST * counts["judged"]
    assert counts["open"] == 0


FALLS = """
import json
import sys
from tests.mutation import runner
from tests.mutation.coverage import Coverage
from tests.mutation.mutants import Source
from tests.mutation.processes import preload

preload()
alive = []
for module, short, files in json.loads(sys.stdin.read()):
    source = Source(module)
    mutants = [m for m in source.mutants if m.id.partition(":")[2] == short]
    alive += runner.judge_by(source, mutants, files, [], Coverage(), lambda mutant, outcome: None)
print(json.dumps([mutant.id for mutant in alive]))
"""


@pytest.mark.slow
def test_what_the_table_says_of_killed_mutants_is_true():
    """Of each module that is as it was judged one mutant: it falls to the check that is named."""
    data = table.read()
    old, asked = set(table.stale(data)), []
    for name, row in data["modules"].items():
        killed = [short for short, check in row["killed"].items() if check in CHECKS.values()]
        if name not in old and killed:
            short = killed[len(killed) // 2]
            files = [f"tests/{file}" for file, check in CHECKS.items() if check == row["killed"][short]]
            asked.append([f"sdekit.{name}", short, files])
    assert asked, "every module has changed since its mutants were judged. Next: make mutate"
    done = subprocess.run(
        [sys.executable, "-c", FALLS], input=json.dumps(asked), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_modules_that_changed_since_they_were_judged_are_marked():
    """A run takes hours: `make mutate` judges again what changed, and fails until all is judged."""
    data = table.read()
    text, old = table.markdown(data), table.stale(data)
    assert text["module"].count("(changed since)") == len(old)
    assert (f"{len(old)} modules have changed" in text["total"]) == bool(old)
    first, last, *_ = data["modules"]
    data["modules"][first]["digest"] = ""
    del data["modules"][last]
    assert first in table.stale(data)
    assert last in table.waiting(data)
    assert f"`{last}`" in table.markdown(data)["total"]
    assert not {*table.waiting(data)} & {*data["modules"]}
