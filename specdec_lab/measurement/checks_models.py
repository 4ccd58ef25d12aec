"""Checks of the models: do their vocabularies match, is there enough memory, and are long texts scored correctly?"""

from typing import TYPE_CHECKING

from specdec_lab.measurement.diagnosis_setup import Measurement, Setup
from specdec_lab.measurement.findings import Finding
from specdec_lab.measurement.memory_profile import MemoryProfile, available_memory, memory_profile
from specdec_lab.measurement.tables_shown import mib
from specdec_ref.consistency import largest_allowed, largest_difference, length_thresholds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TIGHT = 0.9
"""Memory is tight above this share of what is available. Kernels' workspaces, fragments and other programs vary by a
few percent."""

EXAMPLES = 3


def check_vocabulary(setup: Setup) -> list[Finding] | None:
    """Do target and draft have the same string for each id?"""
    models = setup.models
    if models.draft is None or models.draft_tokenizer is None:
        return None
    rows = [config.get_text_config(decoder=True).vocab_size for config in (models.target, models.draft)]
    tokens = len(models.target_tokenizer.get_vocab())
    setup.measurements["vocabulary"] = Measurement(f"{tokens:,} tokens", {"tokens": tokens})
    return compare_vocabularies(models.target_tokenizer, models.draft_tokenizer, rows[0], rows[1])


def compare_vocabularies(
    target: "PreTrainedTokenizerBase", draft: "PreTrainedTokenizerBase", target_rows: int, draft_rows: int
) -> list[Finding]:
    """Compare the maps from id to string, and the number of ids that each model scores (rows)."""
    for role, tokenizer, rows in (("target", target, target_rows), ("draft", draft, draft_rows)):
        largest = max(tokenizer.get_vocab().values())
        if largest >= rows:
            return [
                Finding(
                    "vocabulary-rows-missing",
                    "problem",
                    f"The {role}'s tokenizer has tokens that its model does not know",
                    f"ids up to {largest}; the model scores {rows}",
                    "Tokens were added to the tokenizer without the model, or the two come from different places.",
                    "Load the tokenizer that belongs to the model.",
                    {"largest_id": largest, "rows": rows},
                )
            ]
    ours, theirs = ({i: s for s, i in tokenizer.get_vocab().items()} for tokenizer in (target, draft))
    different = [i for i in sorted(ours.keys() | theirs.keys()) if ours.get(i) != theirs.get(i)]
    if different:
        shown = ", ".join(
            f"id {i} is {ours.get(i)!r} in the target and {theirs.get(i)!r} in the draft" for i in different[:EXAMPLES]
        )
        shared = len(set(ours.values()) & set(theirs.values()))
        return [
            Finding(
                "vocabulary-mismatch",
                "problem",
                "The draft's vocabulary is not the target's",
                f"{len(different)} of {len(ours.keys() | theirs.keys())} ids differ (target {len(ours)} tokens, draft "
                f"{len(theirs)}, {shared} strings in common): {shown}",
                "The draft proposes ids that mean something else to the target, which rejects them. The output stays "
                "correct but becomes slower. Vocabularies of equal size can still differ.",
                "Use a draft that maps every string to the same id as the target, for instance one of its family. "
                "vLLM has use_heterogeneous_vocab for this setup.",
                {"different": len(different), "target_tokens": len(ours), "draft_tokens": len(theirs)},
            )
        ]
    if target_rows != draft_rows:
        return [
            Finding(
                "vocabulary-padding",
                "note",
                "Same vocabulary, padded differently: harmless",
                f"{len(ours)} tokens in both; the target scores {target_rows} ids, the draft {draft_rows}",
                "Embeddings are padded to a round number of rows; no text uses the rows beyond the vocabulary.",
                "Nothing: the loop takes q as 0 where the draft has no row.",
                {"target_rows": target_rows, "draft_rows": draft_rows, "tokens": len(ours)},
            )
        ]
    return []


def check_memory(setup: Setup) -> list[Finding]:
    """Is there enough memory for the weights and KV caches of both models?"""
    models = setup.models
    longest = max(max(map(len, setup.prompts)) + setup.max_new_tokens, setup.context or 0)
    configs = models.target, models.draft
    asked = {"batch": setup.batch, "context": min(longest, models.context), "k": setup.max_k}
    profile = memory_profile(configs, **asked, dtype=models.dtype, device=models.device)
    available = setup.available
    if available is None:
        available = available_memory(models.device) + (profile.weights if models.loaded else 0)
    what = f"{profile.batch} × {profile.context} tokens"
    setup.measurements["memory"] = Measurement(
        f"{mib(profile.total)} of {mib(available)} for {what}", {**profile.to_dict(), "available": available}
    )
    return judge_memory(profile, available)


def judge_memory(profile: MemoryProfile, available: int) -> list[Finding]:
    """Findings from a memory profile. available: bytes for everything, weights included."""
    numbers = {**profile.to_dict(), "available": available}
    packed = f", their packed copy {mib(profile.packed)}" if profile.packed else ""
    needs = (
        f"weights {mib(profile.weights)}{packed}, KV cache {mib(profile.kv)} for {profile.batch} × {profile.context} "
        f"tokens, activations about {mib(profile.activations)}: {mib(profile.total)} of {mib(available)} available "
        f"(without speculation {mib(profile.total_alone)})"
    )
    fewer = "fewer sequences at once, a shorter context, a smaller or quantized draft, or prompt lookup, which has none"
    if profile.total > available:
        alone = "even the target alone does not" if profile.total_alone > available else "the target alone would"
        return [
            Finding(
                "memory-too-small",
                "problem",
                "The pair does not fit into memory",
                needs,
                f"Both models and both KV caches are in memory at once; {alone} fit.",
                f"Take {fewer}. A smaller k saves next to nothing.",
                numbers,
            )
        ]
    if profile.total > TIGHT * available:
        return [
            Finding(
                "memory-tight",
                "warning",
                "The pair barely fits into memory",
                needs,
                "Kernels and other programs need memory too.",
                f"Leave a tenth free: {fewer}.",
                numbers,
            )
        ]
    return []


BEYOND = 16
"""Tokens by which a text exceeds a threshold."""


def has_thresholds(setup: Setup) -> bool:
    """Whether a model has a threshold within its context, at which it changes its computation."""
    return bool(_lengths_to_check(setup))


def _lengths_to_check(setup: Setup) -> list[tuple[str, int]]:
    """(role, length) of texts just beyond each threshold of the models, the shortest first. Needs no weights."""
    configurations = (("target", setup.models.target), ("draft", setup.models.draft))
    lengths = [
        (role, threshold + BEYOND)
        for role, configuration in configurations
        if configuration is not None
        for threshold in length_thresholds(configuration)
        if threshold + BEYOND <= setup.models.context
    ]
    return sorted(lengths, key=lambda item: item[1])


def check_thresholds(setup: Setup) -> list[Finding] | None:
    """Do models score texts beyond their thresholds (windows, rotary scaling) alike in steps and in one pass?"""
    if not has_thresholds(setup):
        return None
    models = {"target": setup.pair.target, "draft": setup.draft_model}

    def measure(item: tuple[str, int]) -> tuple[str, int, float]:
        role, length = item
        return role, length, largest_difference(models[role], role, length)  # type: ignore[arg-type]

    measured = setup.as_many_as_fit("lengths", _lengths_to_check(setup), measure)
    worst = max(difference for _, _, difference in measured)
    longest = max(length for _, length, _ in measured)
    setup.measurements["thresholds"] = Measurement(
        f"texts of up to {longest:,} tokens, logits differ by {worst:.1g}",
        {"longest": longest, "largest_difference": worst},
    )
    return [
        Finding(
            f"{role}-inconsistent",
            "problem",
            f"The {role} scores long texts differently in steps",
            f"at {length:,} tokens its logits differ by {difference:.1%} from those of one pass",
            "Beyond a window or the length that its rotary scaling was made for, the model does not use our positions "
            "or mask, so what is decoded there is not exact.",
            "Keep texts shorter than that, or use another model.",
            {"length": length, "difference": difference},
        )
        for role, length, difference in measured
        if difference > largest_allowed(models[role])  # type: ignore[arg-type]
    ]
