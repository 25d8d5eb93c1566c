"""Benchmarks: items with choices, from the Hub or from local files.

An item is a dictionary: {"context": str, "choices": [str, ...], "answer": int}. If one continuation
is scored after several contexts, it is {"context_options": [str, ...], "continuation": str,
"answer": int}. A benchmark with parts adds "group": str. The wording is lm-evaluation-harness's.
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
    """Yield the items of a JSONL file. ValueError with file and line if one is malformed."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                item = json.loads(line)
                check_item(item)
            except KeyError as e:
                raise ValueError(f"{path}, line {number}: no {e}; see --help") from None
            except (ValueError, RecursionError) as e:
                why = str(e)[:200]
                raise ValueError(f"{path}, line {number}: {why}; see --help") from None
            yield item


def check_item(item):
    """ValueError or KeyError if it is not an item."""
    if not isinstance(item, dict):
        raise ValueError(f"expected an object, got {item!r}")
    if "context_options" in item:
        choices = item["context_options"]
        other = item["continuation"]
    else:
        choices = item["choices"]
        other = item["context"]
    if not isinstance(choices, list) or not choices:
        raise ValueError(f"expected a list of choices, got {choices!r}")
    for text in (*choices, other, item.get("group", "")):
        if not isinstance(text, str):
            raise ValueError(f"expected text, got {text!r}")
        text.encode()  # raises for half of a surrogate pair
    if not all(choices) or ("context_options" in item and not other):
        raise ValueError("expected text, got an empty choice, context option or continuation")
    answer = item["answer"]
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise ValueError(f"expected answer from 0 to {len(choices) - 1}, got {answer!r}")
