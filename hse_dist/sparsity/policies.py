"""Every policy that a configuration can choose, with its source: one line each.

In: nothing. Out: `POLICIES`, and the table of them in this package's README, which
`python -m hse_dist.sparsity.policies` writes anew. A test holds both to the settings: a kind that a setting takes has
its line here, and every line its kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- policies: generated -->", "<!-- policies: end -->"

SURVEY = "Hoefler et al., arXiv 2102.00554"
LIVE = "20 bytes a live entry of a candidate row and step of the window"
RIGL = "RigL, Evci et al., ICML 2020"


@dataclass(frozen=True)
class Policy:
    """One kind of a setting.

    Attributes:
        setting: its dotted path. kind: its value; empty for a setting that is a number or a folder.
        what: what it does, in a line.
        source: paper and section.
        memory: bytes that it needs beside the table; "–" for none.
    """

    setting: str
    kind: str
    what: str
    source: str
    memory: str = "–"


POLICIES = (
    Policy("model.user_entries", "", "the strongest m entries of a user's vector are scored; straight-through gradient",
           "HSE, Van Balen & Goethals, WWW 2021"),
    Policy("train.teacher", "", "the scores of a run with more live entries take the place of histories in the loss",
           "distillation, Hinton et al., arXiv 1503.02531; Tang & Wang, KDD 2018", "the table of that run"),
    Policy("sparsity.start", "local_inverse",
           "a sparse factor of the inverse Gram matrix, one solve an item, and one more on what the cut leaves",
           "FSAI, Kolotilina & Yeremin, SIAM J. Matrix Anal. 1993",
           "memory_mb a task; on disk 8 bytes an interaction, an entry of a pattern and a kept pair (`two_hop`: all)"),
    Policy("sparsity.start", "hse", "the exact factor, cut; for small catalogues",
           "HSE, Van Balen & Goethals, WWW 2021", "items × items float64 on the driver"),
    Policy("sparsity.start", "random", "random columns with normal values", f"{SURVEY} §2.4"),
    Policy("sparsity.local_inverse.pattern", "conditional", "the more popular items with the largest G_ij / G_jj",
           "FSAI, Kolotilina & Yeremin, SIAM J. Matrix Anal. 1993"),
    Policy("sparsity.local_inverse.pattern", "two_hop", "the same, over the strongest neighbours too",
           "Chow, SIAM J. Sci. Comput. 2000", "16 MB a task; on disk all pairs"),
    Policy("sparsity.local_inverse.pattern", "greedy", "one by one those that explain most of what is left of an item",
           "Janna & Ferronato, SIAM J. Sci. Comput. 2011; Huan et al., arXiv 2307.11648",
           "the pairs of patterns of `candidates`"),
    Policy("sparsity.schedule", "fixed", "the same number of live entries throughout; they move", f"{RIGL} §3"),
    Policy("sparsity.schedule", "static", "live entries stay where the start put them", f"{SURVEY} §2.4"),
    Policy("sparsity.schedule", "one_shot", "from k₀ to k live entries a row at one step", f"{SURVEY} §2.4",
           "the table of k₀ until then"),
    Policy("sparsity.schedule", "gradual", "from k₀ to k, a part of it at each rewire: cubic, exponential or linear",
           "Zhu & Gupta, arXiv 1710.01878", "the table of k₀, which repacks make smaller"),
    Policy("sparsity.schedule", "lottery", "from k₀ to k in cuts; what survives goes back to its early values",
           "Frankle & Carbin, ICLR 2019; Frankle et al., ICML 2020", "the table of k₀; the early values, on disk"),
    Policy("sparsity.drop", "magnitude", "the smallest |value| · √|gain|", f"{SURVEY} §3.2"),
    Policy("sparsity.drop", "sensitivity", "the smallest |Σ value · gradient| of the window",
           "Molchanov et al., ICLR 2017 §2.2 and CVPR 2019", LIVE),
    Policy("sparsity.drop", "movement", "the smallest −Σ value · gradient: what moves to 0",
           "Sanh et al., NeurIPS 2020 §4", LIVE),
    Policy("sparsity.drop", "fisher", "the smallest ½ · value² · Σ gradient² of the window",
           "LeCun et al., NeurIPS 1989; Theis et al., arXiv 1801.05787", LIVE),
    Policy("sparsity.drop", "activity", "the smallest |value| · √|gain| · length of the column over all rows",
           f"Wanda, Sun et al., ICLR 2024; {SURVEY} §3.3", "8 bytes a column, in a rewire"),
    Policy("sparsity.drop", "soft_threshold", "as magnitude; what stays shrinks by what the last one dropped had",
           "STR, Kusupati et al., ICML 2020", "9 bytes a slot of a block of 2²³, in a rewire"),
    Policy("sparsity.drop", "random", "random entries",
           f"SET, Mocanu et al., Nature Communications 2018; {SURVEY} §3.1"),
    Policy("sparsity.drop", "own", "the smallest by a function of yours, `sparsity.drop.function`", "you", "yours"),
    Policy("sparsity.grow", "gradient", "the strongest loss gradient of positions that are not live", f"{RIGL} §3",
           "explore × 20 bytes a candidate row and step of the window"),
    Policy("sparsity.grow", "momentum", "the same, summed with a decay from rewire to rewire",
           "Dettmers & Zettlemoyer, arXiv 1907.04840 §3", "as gradient; explore × 20 bytes a row"),
    Policy("sparsity.grow", "co_occurrence", "the columns with the largest Σ |value| in rows of the same histories",
           f"Sarwar et al., WWW 2001; {SURVEY} §3.4", "explore × 20 bytes a candidate row and step of the window"),
    Policy("sparsity.grow", "random", "random positions", "SET, Mocanu et al., Nature Communications 2018"),
    Policy("sparsity.grow", "none", "nothing; so only that is dropped by which the number falls", f"{SURVEY} §2.4"),
    Policy("sparsity.budget", "global", "entries of all rows compete, between a floor and a ceiling a row",
           f"{SURVEY} §3.9"),
    Policy("sparsity.budget", "row", "every row keeps its own number", f"{SURVEY} §3.9"),
    Policy("sparsity.budget", "popularity", "every row keeps its own number, in proportion to count^power",
           "mixed dimensions, Ginart et al., ISIT 2021 §3", "8 bytes a row while the start is made"),
    Policy("sparsity.structure", "single", "any position of a row", f"{SURVEY} §2.2"),
    Policy("sparsity.structure", "block",
           "whole blocks of 4, 8 or 16 adjacent columns, one column number a block; scored as a whole",
           f"{SURVEY} §2.2 and §3.7; Gray et al., GPU Kernels for Block-Sparse Weights, 2017",
           "less: one number a block; the pairs of all items while `local_inverse` is made"),
    Policy("sparsity.structure", "n_of_m", "at most n of every m adjacent columns of a row",
           "2:4, Mishra et al., arXiv 2104.08378", "24 bytes a candidate and dropped entry, in a rewire"),
)  # fmt: skip
"""In the order of the settings."""


def table() -> str:
    """The policies as a Markdown table."""
    lines = ["| setting | kind | what it does | memory beside the table | source |", "|---|---|---|---|---|"]
    for policy in POLICIES:
        cells = (
            f"`{policy.setting}`",
            f"`{policy.kind}`" if policy.kind else "given",
            policy.what,
            policy.memory,
            policy.source,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def with_table(text: str) -> str:
    """`text` with what lies between the marks replaced by the table."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
