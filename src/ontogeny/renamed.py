"""Old names of commands, options, settings, keys and routes, and the names that replaced them.

No old name works. Whoever uses one is told the new name: `--world` was renamed `--env`.
"""

COMMANDS = {
    "train agent": "train",
    "train text": "lm train",
    "generate": "lm generate",
    "export": "lm export",
    "audit battery": "audit agent",
    "audit behaviour": "audit behavior",
}
OPTIONS = {
    "--world": "--env",
    "--tasks": "--num-tasks",
    "--lives": "--num-lifetimes",
    "--tokens": "--max-tokens",
    "--every": "--checkpoint-interval",
    "--steps": "--num-steps",
    "--despite-overlap": "--allow-overlap",
    "--batch": "--batch-size",
    "--accumulate": "--gradient-accumulation",
    "--vocabulary": "--vocab-size",
    "--held-out": "--held-out-fraction",
    "--layers": "--num-layers",
    "--heads": "--num-heads",
    "--context": "--context-length",
    "--warmup": "--warmup-fraction",
    "--decay": "--decay-schedule",
    "--clip": "--max-gradient-norm",
    "--rows": "--max-num-seqs",
    "--queue": "--max-queue",
    "--share": "--learning-fraction",
    "--verify": "--weight-check-interval",
    "--bound": "--max-forgetting",
    "--most-bytes": "--max-body-bytes",
    "--shared": "--shared-branch",
    "--state": "--state-dir",
    "--supporting": "--secondary",
    "--known": "--controls",
    "--smallest": "--min-gain",
    "--audits": "--num-audits",
    "--missed": "--na-values",
    "--skip-bad": "--skip-bad-rows",
    "--groups": "--num-groups",
    "--positions": "--num-positions",
    "--fresh": "--isolation",
    "--rounding": "--tolerance",
}
PLUGIN_KINDS = {"worlds": "environments"}
PLUGINS = {  # names of environments, agents, audit tests and model organisms
    "telling": "audit_awareness",
    "flip": "drive_reversal",
    "longer": "longer_chain",
    "transplant": "activation_swap",
    "optimum": "bayes_optimality",
    "clockwork": "open_loop",
    "honest_filter": "calibrated_filter",
    "intention_planner": "goal_planner",
    "mimic_frozen": "latent_state_fixed",
    "mimic_learning": "latent_state_learner",
    "steering_predictor": "shift_inducing_predictor",
    "noisy_steering_predictor": "noisy_shift_inducing_predictor",
    "wanderer": "random_walk",
}
SETTINGS = {
    "lean": "bias",
    "fading": "trace_decay",
    "power": "factor",
    "arms": "num_arms",
    "pulls": "num_pulls",
    "states": "num_states",
    "actions": "num_actions",
    "episodes": "num_episodes",
    "trials": "num_trials",
    "common": "common_probability",
    "second_choice": "has_second_choice",
    "paths": "transitions",
    "walls": "wall_fraction",
    "thorns": "num_thorns",
    "apart": "separated",
    "edge": "goal_at_edge",
    "exposures": "num_exposures",
    "after": "num_test_trials",
    "links": "num_links",
    "noise": "failure_probability",
    "crossed": "crossing_probability",
    "exposed": "exposed_links",
    "changed": "changed_links",
    "segments": "num_segments",
    "length": "segment_length",
    "base": "base_predictability",
    "levels": "num_levels",
    "passage": "passage_length",
    "passages": "num_passages",
    "population": "population_size",
    "generations": "num_generations",
    "generations_per_dispatch": "generations_per_call",
    "updates_per_dispatch": "updates_per_call",
    "lives": "num_lifetimes",
    "spread": "sigma",
    "step_size": "learning_rate",
    "last_spread": "final_sigma_ratio",
    "last_step": "final_learning_rate_ratio",
    "reference": "baseline_agent",
    "told_mean": "known_reward_mean",
    "wander": "exploration_rate",
    "curiosity": "bonus_scale",
    "sampled": "stochastic",
    "units": "hidden_size",
    "drive": "input_scale",
    "memory": "update_gate_bias",
    "layers": "num_layers",
    "heads": "num_heads",
    "context": "context_length",
    "row": "sequence_length",
    "updates": "num_updates",
    "samples": "num_samples",
    "readout": "readout_size",
    "clock": "observe_time",
    "initial": "initial_value",
    "replayed": "replay_batch",
}
SPEC_KEYS = {"world": "env", "environment": "env", "rooms": "files"}
STUDY_KEYS = {
    "worlds": "environments",
    "world": "env",
    "model": "approach",
    "developed_on": "train_env",
    "replay": "record_lifetime",
    "tasks": "num_tasks",
    "mesa": "includes",
}
STUDY_VALUES = {"reference": "baseline", "code": "ml_code"}
ROUTES = {"/line": "/branch", "/contributions": "/examples", "/thaw": "/unfreeze"}
FIELDS = {
    "to": "target_key",
    "owner": "owner_key",
    "distance": "weight_distance",
    "head": "current_version",
    "contribution": "example",
    "case": "mode",
}
TABLES = {
    "command": COMMANDS,
    "option": OPTIONS,
    "plugin kind": PLUGIN_KINDS,
    "plugin": PLUGINS,
    "setting": SETTINGS,
    "spec key": SPEC_KEYS,
    "study key": STUDY_KEYS,
    "study value": STUDY_VALUES,
    "route": ROUTES,
    "field": FIELDS,
}


def renamed_hint(kind: str, name: str) -> str | None:
    """Name the replacement of an old name.

    Args:
        kind: A key of `TABLES`.
        name: The name that a person used.

    Returns:
        A sentence such as "`--world` was renamed `--env`.", or None where the name was never renamed.
    """
    new = TABLES[kind].get(name)
    return None if new is None else f"`{name}` was renamed `{new}`."
