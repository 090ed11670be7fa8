"""Writes the length traces from a clone of github.com/Azure/AzurePublicDataset (CC-BY-4.0): timestamps dropped, order kept.

Usage: make.py CLONE [COMMIT]    (recorded at b469a113cedca53ddc3bdea71a143dc4b7d8700c)

The planner's built-in sample (every 38th request of the conversation trace) comes from here too.
"""

import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
SAMPLE = HERE / "../../runtime/src/backend/neuron/plan/lengths.csv"
CREDIT = """\
# Azure LLM inference trace 2023, {what}: prompt and generated tokens in order of arrival, timestamps dropped.
# Patel et al., Splitwise: Efficient generative LLM inference using phase splitting, ISCA 2024.
# github.com/Azure/AzurePublicDataset data/AzureLLMInferenceTrace_{name}.csv, CC-BY-4.0{how}.
ContextTokens,GeneratedTokens
"""


def rows(clone, commit, name):
    path = f"{commit}:data/AzureLLMInferenceTrace_{name}.csv"
    text = subprocess.run(["git", "-C", clone, "show", path], check=True, capture_output=True, text=True).stdout
    return [line.strip().split(",", 1)[1] for line in text.splitlines()[1:] if line.strip()]


def main():
    clone, commit = sys.argv[1], (sys.argv[2:] or ["HEAD"])[0]
    for name, what in [("conv", "conversation"), ("code", "code")]:
        lines = rows(clone, commit, name)
        credit = CREDIT.format(what=what, name=name, how="")
        (HERE / f"azure_{name}_2023.csv").write_text(credit + "\n".join(lines) + "\n")
        if name == "conv":
            credit = CREDIT.format(what=what, name=name, how="; every 38th request")
            SAMPLE.write_text(credit + "\n".join(lines[::38]) + "\n")


main()
