"""Source as the image keeps it: what no command needs at run time is left out before it is compiled.

A third of a command's imports is unmarshalling code, and another third is running it. So `from __future__ import
annotations` becomes the compiler's flag (as an import it reads a file of the standard library), blocks for type
checkers and annotations go, and a docstring is cut to its first line: that of a step or rule is shown to users.
"""

from __future__ import annotations
import __future__

import ast

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType
    from typing import TypeVar

    Node = TypeVar("Node", ast.Module, ast.ClassDef, ast.FunctionDef)

#: The ends of these docstrings name sections of the specification, for errors.
_DOCUMENTED = "ocirt.validation.rules"


def compiled(text: bytes | str, path: str, module: str = "") -> tuple[CodeType, tuple[str, ...]]:
    """The code of a module, and the modules that it imports when it is run, in order; raises SyntaxError."""
    tree = ast.parse(text, path)
    needs = _imports(tree)
    tree = ast.fix_missing_locations(_Lean(full=module.startswith(_DOCUMENTED)).visit(tree))
    flags = __future__.annotations.compiler_flag
    return compile(tree, path, "exec", flags=flags, dont_inherit=True), needs


def _imports(tree: ast.Module) -> tuple[str, ...]:
    """Names that may be modules, from the statements at the module's top; those below an `if` are left to importlib."""
    names: list[str] = []
    for statement in tree.body:
        if isinstance(statement, ast.Import):
            names += [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            names.append(statement.module)
            names += [f"{statement.module}.{alias.name}" for alias in statement.names]
    return tuple(dict.fromkeys(names))


class _Lean(ast.NodeTransformer):
    def __init__(self, *, full: bool) -> None:
        self.full = full

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        """Only the import of annotations: another feature would be lost with it."""
        future = node.module == "__future__" and [alias.name for alias in node.names] == ["annotations"]
        return None if future else node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt] | None:
        """`if TYPE_CHECKING:` is never true here."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return [self.visit(statement) for statement in node.orelse] or None
        return self.generic_visit(node)

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self._body(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._body(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._body(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        """The assignment without the annotation; an annotation alone says nothing to the interpreter.

        In a function it makes a name local: but so does the assignment that follows it.
        """
        if node.value is None:
            return None
        return ast.copy_location(ast.Assign(targets=[node.target], value=self.visit(node.value)), node)

    def _body(self, node: Node) -> Node:
        self.generic_visit(node)
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            if not isinstance(node, ast.FunctionDef):
                del node.body[0]
            elif not self.full:
                first.value.value = first.value.value.split("\n", 1)[0]
        if not node.body and not isinstance(node, ast.Module):
            node.body.append(ast.Pass())
        return node
