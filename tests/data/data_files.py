"""Rows and files that the tests of the data side share."""

import csv
import json

import datasets


def gsm8k_rows(count, offset=0):
    return [
        {"question": f"What is {i} plus 1?", "answer": f"{i} + 1 = <<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"}
        for i in range(offset, offset + count)
    ]


def write_lines(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), "utf-8")
    return str(path)


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_parquet(path, rows):
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows).to_parquet(path)
    return str(path)
