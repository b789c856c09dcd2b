"""A benchmark run as a report: tables, plots and examples in one Markdown file and one self-contained HTML page."""
