"""The report: reads run folders, and nothing else, and shows what happened as a page and a learning curve."""
