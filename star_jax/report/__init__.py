"""The report: reads run folders, and nothing else, and shows what happened as a page and a learning curve."""

from star_jax.report.page import build_report

__all__ = ["build_report"]
