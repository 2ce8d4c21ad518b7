"""Who may start a program; and qemu's are started in one place, in the sandbox, with their formats said."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from agents import sandbox
from tests.architecture.tree import PACKAGES, modules, parsed

STARTERS = {
    "agents/qemu.py": "qemu's programs, in the sandbox",
    "agents/machine.py": "machines, which live on without their agent",
    "agents/sandbox.py": "tries once whether the sandbox works, with `true`",
    "agents/mover.py": "the agent's own child",
    "agents/primary_stores/block_device.py": "blkid, on a device before it is taken; it changes nothing",
    "bus/postgres_server.py": "the embedded Postgres",
    "api/demo.py": "`storebus up` and the command of the demo",
    "api/demo_image.py": "mkfs.ext4 and e2fsck on the demo's own file",
    "api/demo_s3.py": "the demo's S3 server",
}
TOOLS = ("qemu-img", "qemu-nbd", "qemu-storage-daemon", "qemu-io")
STARTS = {"create_subprocess_exec", "create_subprocess_shell", "Popen", "run", "call", "check_call", "check_output", "getoutput", "system",
          "popen", "execv", "execve", "execvp", "execvpe", "execl", "execlp", "posix_spawn", "posix_spawnp", "spawnv", "spawnl", "fork"}
OF = {"asyncio", "subprocess", "os", "pty"}


def starts(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls of the standard library that start a program."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            name = node.func.attr
            if node.func.value.id in OF and name in STARTS and (node.func.value.id, name) != ("asyncio", "run"):
                yield node


def words(call: ast.Call) -> list[str]:
    """Its arguments that are literal."""
    return [each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def test_few_modules_start_programs() -> None:
    found = {str(path) for path in modules(*PACKAGES) if any(starts(parsed(path)))}
    assert found == set(STARTERS)
    imported = [str(path) for path in modules(*PACKAGES) for node in ast.walk(parsed(path))
                if isinstance(node, ast.ImportFrom) and node.module in OF and STARTS & {each.name for each in node.names}]
    assert not imported, "import the module, so that this test sees what is started"


def test_qemus_programs_are_started_by_one_function() -> None:
    """`_start` in agents/qemu.py, which alone calls the sandbox; `version` reads no image."""
    tree = parsed(next(path for path in modules("agents") if str(path) == "agents/qemu.py"))
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, (ast.AsyncFunctionDef, ast.FunctionDef))}
    starting = {name for name, node in functions.items() if any(starts(node))}
    assert starting == {"_start", "version"}
    assert words(next(starts(functions["version"]))) == ["qemu-img", "--version"]
    assert "sandbox.wrapped" in ast.unparse(functions["_start"])
    for path in modules(*PACKAGES):
        for call in ast.walk(parsed(path)):
            if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant) and call.args[0].value in TOOLS:
                by = ast.unparse(call.func)
                assert by in ("qemu.run", "run", "asyncio.create_subprocess_exec") and (by == "qemu.run" or str(path) == "agents/qemu.py"), path


def test_every_command_line_says_its_formats() -> None:
    """As written: `-f` or `--image-opts` is a literal of each call, and of each list that begins with a program."""
    seen = 0
    for path in modules(*PACKAGES):
        for node in ast.walk(parsed(path)):
            inner = node.args if isinstance(node, ast.Call) else node.elts if isinstance(node, ast.List) else []
            first = inner[0] if inner else None
            if not (isinstance(first, ast.Constant) and first.value in TOOLS) or (isinstance(node, ast.Call) and "which" in ast.unparse(node.func)):
                continue
            text = {each.value for each in inner if isinstance(each, ast.Constant)}
            if text & {"--version"}:
                continue
            seen += 1
            assert text & {"-f", "--image-opts", "--blockdev"}, (path, ast.unparse(node))
    assert seen >= 12


@pytest.mark.parametrize("line", [
    "qemu-img info x", "qemu-img create -b y x", "qemu-img create -f qcow2 -b y x", "qemu-img convert -f raw x y", "qemu-img compare -f raw x y",
    "qemu-img check --image-opts file.filename=x", "qemu-nbd -r x", "qemu-img info -f raw json:{}", "qemu-img info -f raw nbd:127.0.0.1:1",
    "qemu-img info -f raw NBD://x", "qemu-storage-daemon", 'qemu-storage-daemon --blockdev {"filename":"x"}', "sh -c true",
])
def test_a_line_that_leaves_something_to_be_guessed_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"qemu|sh"):
        sandbox.wrapped(line.split(), memory=1 << 30)


def test_the_eyes_see() -> None:
    assert any(starts(ast.parse("subprocess.run(['qemu-img'])"))) and any(starts(ast.parse("os.system('x')")))
    assert not any(starts(ast.parse("asyncio.run(main())")))
