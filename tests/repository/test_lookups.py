"""A rule on our own code: no name, format or command that is only known when it runs.

What is read from a file or a message must not decide what is imported, looked up or called; the
layers that plans may name stand in a table (``architecture.LAYERS``). Where a look-up by a name
that is no literal remains, it is allowed here, with the reason why nobody else chooses the name.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    file
    for pattern in ("mixmfl/**/*.py", "entrypoints/*.py", "plans/*.py", "docs/*.py")
    for file in ROOT.glob(pattern)
)

BUILTINS = {"eval", "exec", "compile", "globals", "locals", "vars"}
"""Never, as a name or of the module builtins; methods may be called so."""

BY_NAME = {"getattr", "setattr", "delattr", "attrgetter", "methodcaller"}
IMPORTS = {"import_module", "__import__", "find_spec", "resolve_name"}
"""These two are called with a literal name, and never passed on or called otherwise."""

NEVER = {
    *("locate", "safeimport", "run_path", "run_module", "spec_from_file_location"),
    *("SourceFileLoader", "load_source", "format_map", "getoutput", "getstatusoutput"),
    *("recursive_find_python_class", "get_network_from_plans", "load_plans"),
    *("PlansManager", "ConfigurationManager"),
    *("from_string", "Template", "NativeEnvironment", "Markup", "mark_safe", "get_source"),
    *("DictLoader", "FunctionLoader", "FileSystemLoader", "ModuleLoader", "ChoiceLoader"),
}
"""Neither called, nor passed on, nor imported.

The third and fourth line look up what nnU-Net's plans name. The last two make a template, or markup
that is not escaped, of something else than the files of our package.
"""

TEMPLATES = {"get_template", "select_template", "get_or_select_template", "PackageLoader"}
"""These are called with literals only, and never passed on."""

SHELLS = {"system", "popen", "posix_spawn", "posix_spawnp", "startfile", "spawn"}
"""Never of os or pty; beside all that begin with exec or spawn."""

PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "jsonpickle"}

LOGS = {"debug", "info", "warning", "error", "exception", "critical"}

DUNDERS = {"__dict__", "__globals__", "__subclasses__", "__builtins__", "__getattribute__"}

# By file and code: why no file and no message decides what is looked up.
ALLOWED = {
    ("__main__.py", "sys.modules[main.__module__]"): "the module of a command of ours",
    ("pipeline.py", "import pickle"): "from and to a process of our own, over its own pipe",
    ("pipeline.py", "pickle.loads(head, buffers=buffers)"): "what our own process wrote, as above",
    (
        "process_memory.py",
        "getattr(ctypes.CDLL(None), name, None)",
    ): "two literal names here",
    ("itk.py", "getattr(SimpleITK, name)"): "what image.py and registration.py call, by literals",
    ("planes.py", "getattr(plane, name)"): "literal names, in this module",
    ("metrics.py", "getattr(each, metric)"): "the names of METRICS",
    ("prototypes.py", "getattr(self, part)"): "PARTS, the fields of our own dataclass",
    ("prototypes.py", "getattr(one, part)"): "likewise",
    ("prototypes.py", "getattr(other, part)"): "likewise",
    ("prototypes.py", "getattr(prototypes, part)"): "likewise",
    ("base.py", "getattr(encoder, name)"): "_DECODER_READS, literal names",
    ("mdmnet.py", "getattr(encoder, name)"): "likewise",
    ("dicom_seg.py", "setattr(header, name, None if name.endswith(('Date', 'Time')) else '')"): (
        "literal names, in this module"
    ),
    ("_paths.py", "getattr(options, action.dest)"): "the name that a command gave its own option",
    ("_options.py", "what.format(counted=counted)"): "a literal of the command that calls it",
    ("_options.py", "getattr(options, f'dp_{name}')"): "literal names, of this module's options",
    ("_command.py", "vars"): "the parsed options of this command, by the names of KEPT",
    ("measure_privacy.py", "getattr(options, name)"): "literal names, of this command's options",
    ("plan_preprocess.py", "getattr(options, name)"): "literal names, of this command's options",
    ("tracking.py", "importlib.util.find_spec(name)"): "a name of TRACKERS; nothing is imported",
    ("methods.py", "importlib.import_module(module)"): "code that the user of a benchmark names",
    ("methods.py", "getattr(loaded, name)"): "likewise",
}


def look_ups(code: str) -> Iterator[str]:
    """Yield what in a module's code breaks the rule, as code."""
    tree = ast.parse(code)
    literals = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and _is_literal(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    nodes = list(ast.walk(tree))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            if _brings(node):
                yield ast.unparse(node)
        elif isinstance(node, ast.Name | ast.Attribute):
            name = _last(node)
            if (
                name in NEVER
                or name in DUNDERS
                or (name in BUILTINS and _of(node) in ("", "builtins"))
                or (_is_shell(name) and _of(node) in ("os", "pty", "posix"))
                or (name in BY_NAME | IMPORTS | TEMPLATES and id(node) not in called)
            ):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and _breaks(node, literals):
            yield ast.unparse(node)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            texts = isinstance(node.right, ast.Tuple | ast.Dict)
            if texts and not _is_literal(node.left):
                yield ast.unparse(node)
        elif (
            isinstance(node, ast.Subscript)
            and _last(node.value) == "modules"
            and _of(node.value) == "sys"
        ):
            yield ast.unparse(node)


def _breaks(call: ast.Call, literals: set[str]) -> bool:
    """Say whether a call looks something up, or formats, by what is no literal; or unpickles."""
    name, given = _last(call.func), call.args
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in BY_NAME:
        place = 0 if name in ("attrgetter", "methodcaller") else 1
        chosen = given[place : place + 1] if place else given
        return not chosen or not all(map(_is_literal, chosen)) or "name" in options
    if name in IMPORTS | TEMPLATES:
        return not given or not all(map(_is_literal, given)) or bool(options)
    if name == "Environment":
        escape = options.get("autoescape")
        return not isinstance(escape, ast.Constant) or escape.value is not True
    if name in ("Unpickler", "read_pickle"):
        return True
    if name in ("load", "loads", "load_all", "full_load", "unsafe_load"):
        root = ast.unparse(call.func).split(".")[0]
        if root in {*PICKLES, "torch", "yaml"}:
            return True
    if name == "format":
        of = call.func.value if isinstance(call.func, ast.Attribute) else None
        return of is not None and not (
            _is_literal(of) or (isinstance(of, ast.Name) and of.id in literals)
        )
    if name in LOGS and isinstance(call.func, ast.Attribute) and len(given) > 1:
        return ast.unparse(call.func.value) in ("log", "logging") and not _is_literal(given[0])
    pickles, shell = (
        option in options and ast.unparse(options[option]) != "False"
        for option in ("allow_pickle", "shell")
    )
    return pickles or (shell and _of(call.func) == "subprocess")


def _brings(node: ast.Import | ast.ImportFrom) -> bool:
    """Say whether an import brings what is never used, or what is used under another name."""
    if isinstance(node, ast.Import):
        roots = {alias.name.split(".")[0] for alias in node.names}
        return bool(roots & {*PICKLES, "pydoc", "runpy"})
    root = (node.module or "").split(".")[0]
    names = {alias.name for alias in node.names}
    renamed = {alias.name for alias in node.names if alias.asname}
    return (
        root in {*PICKLES, "pydoc", "runpy", "builtins"}
        or bool(names & NEVER or renamed & (BY_NAME | IMPORTS | TEMPLATES | {"Environment"}))
        or (root in ("os", "pty", "posix") and any(map(_is_shell, names)))
    )


def _is_shell(name: str) -> bool:
    return name in SHELLS or name.startswith(("exec", "spawn"))


def _of(node: ast.expr) -> str:
    """Return what an attribute is of; empty of a plain name."""
    return ast.unparse(node.value) if isinstance(node, ast.Attribute) else ""


def _last(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_literal(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_no_look_up_by_what_a_file_or_a_message_says() -> None:
    assert len(FILES) > 80  # that there are some at all
    found = {
        (file.name, code) for file in FILES for code in look_ups(file.read_text(encoding="utf-8"))
    }
    assert sorted(found - ALLOWED.keys()) == [], "allow it in ALLOWED, with the reason, or mend it"
    assert sorted(ALLOWED.keys() - found) == [], "is not there any more; take it off the list"


@pytest.mark.parametrize(
    "code",
    [
        "from pydoc import locate",
        "import pydoc as documentation",
        "import pickle",
        "from marshal import loads",
        "from os import system as run",
        "import os\nos.system('ls')",
        "run = os.popen",
        "eval('1')",
        "use(eval)",
        "exec(text)",
        "compile(text, '', 'exec')",
        "importlib.import_module(name)",
        "importlib.import_module('a' + name)",
        "__import__(name)",
        "load = importlib.import_module",
        "getattr(torch.nn, name)",
        "getattr(torch.nn, *names)",
        "getattr(torch.nn, f'{name}2d')",
        "look = getattr",
        "from operator import attrgetter as look",
        "from importlib import import_module as load",
        "attrgetter(name)(thing)",
        "from builtins import exec",
        "builtins.eval(text)",
        "os.execvp(name, names)",
        "find_spec(name)",
        "operator.attrgetter(name)(thing)",
        "setattr(thing, name, 1)",
        "delattr(thing, name)",
        "thing.__dict__[name]",
        "vars(thing)[name]",
        "globals()[name]",
        "sys.modules[name]",
        "object.__subclasses__()",
        "torch.load(file)",
        "pickle.loads(content)",
        "yaml.load(text, Loader=Loader)",
        "np.load(file, allow_pickle=True)",
        "np.load(file, allow_pickle=pickles)",
        "subprocess.run(text, shell=True)",
        "subprocess.Popen(text, shell=how)",
        "template.format(value)",
        "told['message'].format(value)",
        "template.format_map(values)",
        "template % (value, other)",
        "template % {'a': value}",
        "log.info(told, value)",
        "runpy.run_path(path)",
        "PlansManager(plans)",
        "from nnunetv2.utilities.find_class_by_name import recursive_find_python_class",
        "getattr()",
        "Environment(loader=loader)",
        "jinja2.Environment(loader=loader, autoescape=choose)",
        "Environment(loader=loader, autoescape=False)",
        "environment.from_string(text)",
        "from jinja2 import Template",
        "jinja2.Template(text)",
        "environment.get_template(name)",
        "environment.get_template(f'{name}.html')",
        "find = environment.get_template",
        "FileSystemLoader(folder)",
        "PackageLoader(name)",
        "from markupsafe import Markup",
    ],
)
def test_the_rule_sees(code: str) -> None:
    assert list(look_ups(code))


@pytest.mark.parametrize(
    "code",
    [
        "import importlib\nimportlib.import_module('mixmfl.flare')",
        "getattr(thing, 'name', None)",
        "hasattr(thing, 'name')",
        "re.compile('[a-z]')",
        "network.eval()",
        "platform.system()",
        "from importlib.util import find_spec\nfind_spec('nvflare')",
        "'{} and {}'.format(1, 2)",
        "README = '{a}'\nREADME.format(a=1)",
        "rest = number % 7",
        "'%s' % (name,)",
        "log.info('%s', name)",
        "np.load(file, allow_pickle=False)",
        "subprocess.run(['ls', name])",
        "json.loads(text)",
        "format(number, '.2f')",
        "safetensors.torch.load(content)",
        "Environment(loader=PackageLoader('mixmfl.evaluation', 'templates'), autoescape=True)",
        "environment.get_template('page.html').render(title=title)",
    ],
)
def test_the_rule_leaves_alone(code: str) -> None:
    assert not list(look_ups(code))
