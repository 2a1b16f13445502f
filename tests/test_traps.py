"""The traps of the method (section 8), each with the tests that guard against it.

 1. Rounding breaks the total
    resampling/test_allocation.py: test_trap_01_rounding_keeps_the_total
 2. Counts go negative
    resampling/test_allocation.py: test_trap_02_counts_do_not_go_negative
    resampling/test_rows.py: test_trap_02_zero_and_negative_counts
 3. A negative class mean takes everything
    resampling/test_allocation.py: test_trap_03_nonpositive_class_mean_is_refused
 4. alpha < 1 ignored; alpha as a float
    resampling/test_allocation.py: test_trap_04_alpha_below_one_and_written_as_a_float
 5. With "none" classes vanish
    resampling/test_rows.py: test_trap_05_none_leaves_classes_as_they_are
    studies/test_studies.py: test_trap_05_none_keeps_every_class_and_reports_total
 6. pool-average chooses arbitrarily
    resampling/test_oversampling.py: test_trap_06_pool_average_is_about_the_real_mean
 7. Zero metric values dropped
    evaluation/test_metrics.py: test_trap_07_zeros_are_not_dropped
 8. Precision divides by zero
    evaluation/test_metrics.py: test_trap_08_unpredicted_class_has_precision_0_and_a_flag
    report/test_tables.py: test_trap_08_class_never_predicted_is_reported
 9. t-tests of nested, unpaired, uncorrected runs
    evaluation/test_statistics.py: test_trap_09_members_of_a_variant_are_not_independent
10. Confidence is a logit here, a probability there
    hardness/test_recorder.py: test_trap_10_confidence_is_a_probability_not_a_logit
11. Never learnt counts as easiest
    hardness/test_recorder.py: test_trap_11_never_learnt_samples_are_not_the_easiest
12. Fraction of a class truncated
    data/test_sources_npz.py: test_trap_12_fraction_of_a_class_is_exact
    resampling/test_pruning.py: test_trap_12_shares_of_a_class_are_exact
13. The hard end of an estimator unknown
    hardness/test_recorder.py: test_trap_13_every_estimator_has_a_hard_end
    report/test_study_files.py: test_trap_13_the_hard_end_follows_the_estimator
    resampling/test_allocation.py: test_trap_13_both_ends_give_the_hard_class_more
    studies/test_studies.py: test_trap_13_every_estimator_finds_known_hardness_at_its_own_end
14. Oversampling of augmented images
    loaders/contracts.py: check_trap_14_augmentation_comes_after_resampling
    resampling/test_rows.py: test_trap_14_the_plan_holds_rows_of_the_raw_split
15. The wrong end dropped
    report/test_figures.py: test_trap_15_galleries_show_the_right_end
    resampling/test_rows.py: test_trap_15_easy_drops_the_easy_end
    studies/test_studies.py: test_trap_15_easiest_samples_of_easy_class_are_dropped
16. Hardness of other samples after pruning
    resampling/test_oversampling.py: test_trap_16_scores_follow_the_samples_that_pruning_kept
17. Forgetting reset every batch
    hardness/test_recorder.py: test_trap_17_forgetting_continues_across_batches_and_epochs
18. Stale results reused, crashes leave gaps
    members/test_store.py: test_trap_18_crash_before_scores_leaves_nothing_and_next_run_retrains
    members/test_store.py: test_trap_18_unresolved_precision_has_no_key
    members/test_store.py: test_trap_18_new_numerics_number_retires_old_results
    members/test_store.py: test_trap_18_every_augmentation_changes_the_key
    members/test_store.py: test_trap_18_every_training_field_changes_the_key
    members/test_store.py: test_trap_18_loss_rounding_for_many_classes_changes_the_key
    members/test_store.py: test_trap_18_seed_plan_and_data_change_the_key
19. Mean of per-image standard deviations
    data/test_convert.py: test_trap_19_std_is_over_all_pixels
20. Constants of another dataset
    data/test_convert.py: test_trap_20_statistics_come_from_the_dataset_itself
21. Host synchronisation in the step
    training/test_trainer.py: test_trap_21_check_catches_a_read
    training/test_trainer.py: test_trap_21_step_of_any_recipe_reads_nothing_back
    training/test_trainer.py: test_trap_21_step_reads_nothing_back
22. Inference once per class
    test_traps.py: test_trap_22_one_inference_pass_for_any_number_of_classes
"""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from hbr_fast.data.convert import convert
from hbr_fast.evaluation.metrics import evaluate
from hbr_fast.training import predict

TESTS = Path(__file__).parent


def test_traps_list_matches_their_tests() -> None:
    listed = re.findall(r"^ {4}(\S+\.py): (\w+)$", __doc__ or "", flags=re.MULTILINE)
    found = [
        (str(path.relative_to(TESTS)), node.name)
        for path in sorted(TESTS.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and re.match(r"(test|check)_trap_\d", node.name)
    ]
    assert sorted(listed) == sorted(found)
    numbers = {int(re.findall(r"_trap_(\d+)_", name)[0]) for _, name in found}
    assert numbers == set(range(1, 23))


@pytest.mark.parametrize("classes", [2, 7])
def test_trap_22_one_inference_pass_for_any_number_of_classes(
    classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = convert(
        "synthetic", tmp_path / "d.hbr", classes=classes, train_per_class=4, test_per_class=9, shape=(1, 8, 8)
    )
    seen: list[int] = []

    class Counting(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(len(images))
            return images.flatten(1)[:, :classes]

    monkeypatch.setattr(predict, "EVALUATION_BATCH", 5)
    logits = predict.predict(Counting(), dataset.test, dtype=torch.float32)
    assert sum(seen) == len(dataset.test) == 9 * classes
    before = list(seen)
    result = evaluate(logits, dataset.test.labels, classes=dataset.classes)
    assert result.recall.shape == (classes,)
    assert np.isfinite(result.mcc).all()
    assert seen == before  # every metric of every class comes from the stored logits
