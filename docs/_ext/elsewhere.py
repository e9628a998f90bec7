"""Links to names that a docstring's own module does not define.

Those of this package are found by their last part. Those of torch, torchvision and kornia go to their sites by rule and
not by a fetched inventory: a build needs no network.
"""

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

_TORCH = "https://docs.pytorch.org/docs/stable"
_PAGES = {
    "collections.abc.": "https://docs.python.org/3/library/collections.abc.html",
    "kornia.geometry.": "https://kornia.readthedocs.io/en/latest/geometry.transform.html",
    "torch.": _TORCH + "/generated/{name}.html",
    "torchvision.ops.": "https://docs.pytorch.org/vision/stable/generated/{name}.html",
}
_CLASSES = {
    "Figure": "https://matplotlib.org/stable/api/figure_api.html",
    "Tensor": f"{_TORCH}/tensors.html",
    "pathlib.Path": "https://docs.python.org/3/library/pathlib.html",
    "torch.Tensor": f"{_TORCH}/tensors.html",
    "torch._C.Generator": f"{_TORCH}/generated/torch.Generator.html",
    "torch.device": f"{_TORCH}/tensor_attributes.html",
    "torch.nn.modules.module.Module": f"{_TORCH}/generated/torch.nn.Module.html",
    "torch.dtype": f"{_TORCH}/tensor_attributes.html",
}


def setup(app: Sphinx) -> dict[str, bool]:
    """Resolve what Sphinx does not find."""
    app.connect("missing-reference", _link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _link(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    name = node.get("reftarget", "")
    pages = (page for prefix, page in _PAGES.items() if name.startswith(prefix))
    page = _CLASSES.get(name) or next(pages, None)
    if page is not None:
        return nodes.reference("", "", content, refuri=page.format(name=name), internal=False)
    if node.get("refdomain") != "py" or "." in name:
        return None
    node["refspecific"] = True  # search all modules
    domain = env.domains.python_domain
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], name, node, content)
