"""Benchmarks: items to choose between, from the Hub or from local files.

An item is a dictionary: {"context": str, "choices": [str, ...], "answer": int}, or, where one
continuation is scored after several contexts, {"context_options": [str, ...], "continuation": str,
"answer": int}; "group" if the benchmark has parts. Wording as in lm-evaluation-harness.
"""

import json
import re


def blimp():
    import datasets

    for paradigm in datasets.get_dataset_config_names("nyu-mll/blimp"):
        for d in datasets.load_dataset("nyu-mll/blimp", paradigm, split="train"):
            yield {
                "context": "",
                "choices": [d["sentence_good"], d["sentence_bad"]],
                "answer": 0,
                "group": d["UID"],
            }


def arc_easy():
    import datasets

    for d in datasets.load_dataset("allenai/ai2_arc", "ARC-Easy", split="test"):
        answer = d["choices"]["label"].index(d["answerKey"])
        yield cloze(d["question"], d["choices"]["text"]) | {"answer": answer}


def hellaswag():
    import datasets

    def clean(text):
        text = text.strip().replace(" [title]", ". ")
        return re.sub(r"\[.*?\]", "", text).replace("  ", " ")

    for d in datasets.load_dataset("Rowan/hellaswag", None, split="validation"):
        yield {
            "context": clean(f"{d['activity_label']}: {d['ctx_a']} {d['ctx_b'].capitalize()}"),
            "choices": [f" {clean(ending)}" for ending in d["endings"]],
            "answer": int(d["label"]),
        }


def winogrande():
    import datasets

    for d in datasets.load_dataset("allenai/winogrande", "winogrande_xl", split="validation"):
        before, after = d["sentence"].split("_")
        yield {
            "context_options": [before + d["option1"], before + d["option2"]],
            "continuation": f" {after.strip()}",
            "answer": int(d["answer"]) - 1,
        }


def mmlu():
    import datasets

    for d in datasets.load_dataset("cais/mmlu", "all", split="test"):
        item = cloze(d["question"].strip(), d["choices"])
        yield item | {"answer": d["answer"], "group": d["subject"]}


def cloze(question, choices):
    """A question whose answers are scored by their texts."""
    return {
        "context": f"Question: {question}\nAnswer:",
        "choices": [f" {choice}" for choice in choices],
    }


# The only list of benchmarks: their name, a label for tables, and the function that yields items.
BENCHMARKS = {
    "blimp": ("BLiMP", blimp),
    "arc_easy": ("ARC-E", arc_easy),
    "hellaswag": ("HellaSwag", hellaswag),
    "winogrande": ("WinoGr.", winogrande),
    "mmlu": ("MMLU", mmlu),
}


def local_items(path):
    """The items of a JSONL file. What is not in the schema is a ValueError with file and line."""
    with open(path, "rb") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                d = json.loads(line)
                partial = "context_options" in d
                choices = d["context_options" if partial else "choices"]
                rest = d["continuation" if partial else "context"]
                assert isinstance(choices, list) and choices, "no choices"
                assert all(isinstance(s, str) for s in (*choices, rest)), (
                    "context and choices must be text"
                )
                assert all(choices) and (rest or not partial), "an empty choice"
                assert type(d["answer"]) is int and 0 <= d["answer"] < len(choices), (
                    f"answer={d['answer']!r}"
                )
                assert isinstance(d.get("group", ""), str), "group must be text"
                "".join((*choices, rest)).encode()
            except (ValueError, TypeError, KeyError, AssertionError) as e:
                missing = "no " if isinstance(e, KeyError) else ""
                raise ValueError(
                    f"{path}, line {number}: {missing}{e}; see --help for what a line must be"
                ) from None
            yield d
