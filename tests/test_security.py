"""Nothing that is read from a disk, a hub or a shared folder can run code: a look at every call."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import regrow

PACKAGE = Path(regrow.__file__).parent
# Processes of a benchmark that speak with their parent, and ranks that train together: what PyTorch
# sends between these is a pickle of its own.
BETWEEN_PROCESSES = ("bench/processes.py", "core/distributed.py")
UNPICKLE = ("recv", "broadcast_object_list", "all_gather_object")  # by the end of a call's name
NEVER = (
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "pickle.dump", "pickle.dumps"),
    *("eval", "exec", "os.system", "os.popen", "marshal.load", "marshal.loads", "shelve.open"),
    *("yaml.unsafe_load", "yaml.full_load", "joblib.load", "dill.load", "cloudpickle.load"),
    *("pandas.read_pickle", "pd.read_pickle", "torch.hub.load", "jsonpickle.decode"),
)
NEVER_IMPORTED = ("marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle")
# By the end of a call's name: what it must be told.
MUST_SAY = {
    "torch.load": ("weights_only", "True"),
    "np.load": ("allow_pickle", "False"),
    "numpy.load": ("allow_pickle", "False"),
    "np.save": ("allow_pickle", "False"),
    "yaml.load": ("Loader", "_Loader"),
    "from_pretrained": ("trust_remote_code", "False"),
    "extractall": ("filter", "'data'"),
}
MAY_SAY_NOTHING = ("model_class.from_pretrained", "tokenizer.from_pretrained")  # of a class at hand


def unsafe(source: str, name: str) -> Iterator[str]:
    """Yield the calls and imports of a file that could run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names]
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from (f"import {m}" for m in modules if m.split(".")[0] in NEVER_IMPORTED)
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "torch", "numpy"):
            names = {alias.name for alias in node.names}
            yield from (f"from {node.module} import {n}" for n in sorted(names & {"load", "loads"}))
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        said = {word.arg: ast.unparse(word.value) for word in node.keywords}
        unpickles = called.rpartition(".")[2] in UNPICKLE and name not in BETWEEN_PROCESSES
        if called in NEVER or unpickles:
            yield called
        if said.get("shell") == "True" or said.get("trust_remote_code", "False") != "False":
            yield called
        for ending, (word, value) in MUST_SAY.items():
            ends = called == ending or called.endswith(f".{ending}")
            if ends and called not in MAY_SAY_NOTHING and said.get(word) != value:
                yield f"{called} without {word}={value}"


def test_no_call_of_the_package_runs_what_it_reads() -> None:
    found = {
        name: calls
        for file in sorted(PACKAGE.rglob("*.py"))
        if (name := file.relative_to(PACKAGE).as_posix())
        and (calls := [*unsafe(file.read_text(encoding="utf-8"), name)])
    }
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(file)",
        "pickle.dumps(job)",
        "from pickle import loads",
        "from torch import load",
        "pipe.recv()",
        "dist.broadcast_object_list(box)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
        "AutoModel.from_pretrained(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "model_class.from_pretrained(name, trust_remote_code=True)",
        "archive.extractall(folder)",
        "subprocess.run(text, shell=True)",
        "import joblib",
        "from dill import load",
    ],
)
def test_what_could_run_code_is_seen(line: str) -> None:
    assert [*unsafe(line, "data/x.py")]


def test_study_files_are_read_by_a_safe_loader() -> None:
    import yaml

    from regrow.studies import yaml_file

    assert issubclass(yaml_file._Loader, yaml.SafeLoader)
