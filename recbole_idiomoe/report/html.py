"""Results as HTML pages that need nothing else: no network, no other file."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: object) -> str:
    """Fill an HTML template with ``values``, which are escaped.

    Args:
        template: path inside the package; all templates extend ``report/page.html``.
    """
    environment = Environment(
        loader=PackageLoader("recbole_idiomoe", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)
