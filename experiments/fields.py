"""What each key of a configuration may hold, by itself."""

from typing import TYPE_CHECKING

from experiments.rules import (
    Rule,
    boolean,
    choice,
    file_name,
    integer,
    mapping,
    number,
    text,
)

if TYPE_CHECKING:  # At run time it would bring in jax, which refusing a config can do without.
    from d2ejax.algorithms.adjoint_objective import Corrector
    from d2ejax.algorithms.half_steps import Loss

ANCHORED_LOSSES = ("semi_discrete", "hybrid")
VARIANCE_LOSSES = ("log_variance", *ANCHORED_LOSSES)
ENERGY_LOSSES = ("trajectory_balance", *VARIANCE_LOSSES)
FIXED_VARIANCE_LOSSES = ("mean_matching", "drift_matching", "sde_likelihood")
SAMPLE_LOSSES = ("likelihood", "bridge_matching", *FIXED_VARIANCE_LOSSES)
LOSSES = ("auto", *SAMPLE_LOSSES, *ENERGY_LOSSES)

LOSS_OF_METHOD: dict[str, "Loss"] = {
    "dsb": "mean_matching",
    "sde": "sde_likelihood",
    "dsbm": "bridge_matching",
}
"""Methods that are IPF between sampled ends, and what "auto" is for their half-steps."""

COUPLING_OF_METHOD = {"sf2m": "entropic", "eot": "entropic", "cfm": "exact"}
"""Methods that match coupled minibatches, and what "auto" is for their coupling."""
FLOWS = ("sf2m", "cfm")
"""Those of them that learn a flow rather than the kernels of two processes."""

GRAPHS_OF_METHOD = {"sf2m": ("forward", "current"), "cfm": ("current",), "eot": ("forward",)}
"""Methods of which a drift may have a graph, and which."""

CORRECTORS_OF_METHOD: dict[str, tuple["Corrector", ...]] = {
    "asbs": ("learned", "semi_discrete"),
    "adjoint_sampling": ("reference", "none"),
    "bms": ("independent",),
}
"""Adjoint methods, and what their corrector may be, first what "auto" is."""

FROM_ENERGY = ("sampler", *CORRECTORS_OF_METHOD)
"""Methods that are not IPF and need the energy of the target."""

OF_GENERATIVE_MODELS = ("diffusion", "fine_tuning")
"""Methods that train a process and know its opposite."""

WITHOUT_HALF_STEPS = (
    *COUPLING_OF_METHOD,
    "lightsb",
    "enot",
    *FROM_ENERGY,
    *OF_GENERATIVE_MODELS,
)
"""Methods that are not IPF."""

FIELDS: dict[str, Rule] = {
    "seed": integer(0, 2**32 - 1),
    "method": choice("ipf", *LOSS_OF_METHOD, *WITHOUT_HALF_STEPS),
    "source.name": text(),
    "source.access": choice("samples", "energy"),
    "source.options": mapping(),
    "target.name": text(),
    "target.access": choice("samples", "energy"),
    "target.options": mapping(),
    "pair.name": choice("none", "mixtures", "gaussian_plan"),
    "pair.options": mapping(),
    "snapshots.name": choice("none", "branching", "gapminder", "regulatory"),
    "snapshots.options": mapping(),
    "snapshots.left_out": integer(-1),
    "reference.name": choice(
        "brownian", "ornstein_uhlenbeck", "variance_exploding", "variance_preserving"
    ),
    "reference.sigma": number(above=0),
    "reference.rate": number(above=0),
    "reference.sigma_min": number(above=0),
    "reference.sigma_max": number(above=0),
    "reference.beta_min": number(above=0),
    "reference.beta_max": number(above=0),
    "reference.reversed": boolean(),
    "reference.discretisation": choice("euler", "exact"),
    "grid.num_steps": integer(1),
    "grid.t_max": number(above=0),
    "grid.spacing": choice("uniform", "end_refined", "cosine"),
    "grid.power": number(at_least=1),
    "learn_variance": boolean(),
    "variance.family": choice("bounded", "bridge"),
    "variance.bound": number(above=0),
    "network.width": integer(1),
    "network.depth": integer(1),
    "network.num_frequencies": integer(1),
    "network.layer_norm": boolean(),
    "network.drift_scale": number(above=0),
    "network.prediction": choice("drift", "endpoint"),
    "network.energy_feature": boolean(),
    "network.affine": boolean(),
    "network.equivariant": boolean(),
    "network.score_clip": number(above=0),
    "network.dtype": choice("float32", "bfloat16"),
    "network.steps_at_once": integer(0),
    "graph.of": choice("none", "forward", "current"),
    "graph.width": integer(1),
    "graph.depth": integer(1),
    "graph.num_frequencies": integer(0),
    "graph.sparsity": number(at_least=0),
    "batch_size": integer(1),
    "ipf.iterations": integer(1),
    "ipf.forward_steps": integer(1),
    "ipf.backward_steps": integer(1),
    "ipf.forward_loss": choice(*LOSSES),
    "ipf.backward_loss": choice(*LOSSES),
    "ipf.reanchor": choice("none", "backward", "forward", "both"),
    "ipf.start_from": choice("reference", "lightsb"),
    "ipf.first_coupling": choice("reference", "independent"),
    "ipf.divergence": choice("exact", "hutchinson"),
    "ipf.cached_batches": integer(0),
    "ipf.cache_every": integer(1),
    "ipf.warm_start": boolean(),
    "ipf.paths_per_start": integer(1),
    "ipf.num_anchors": integer(1),
    "ipf.min_anchors": number(at_least=0),
    "ipf.likelihood_batch_size": integer(0),
    "ipf.use_ema_opposite": boolean(),
    "light.num_components": integer(1),
    "light.init_share": number(above=0),
    "light.steps": integer(1),
    "light.backward_steps": integer(1),
    "light.batch_size": integer(1),
    "light.learning_rate": number(above=0),
    "matching.num_steps": integer(1),
    "matching.coupling": choice("auto", "independent", "entropic", "exact"),
    "matching.coupling_epsilon_scale": number(above=0),
    "matching.times": choice("uniform", "grid"),
    "matching.num_times": integer(1),
    "matching.score_weight": number(above=0),
    "matching.path_std": number(at_least=0),
    "enot.num_steps": integer(1),
    "enot.backward_steps": integer(1),
    "enot.inner_steps": integer(1),
    "sampler.num_steps": integer(1),
    "sampler.loss": choice(
        "log_variance", "trajectory_balance", "subtrajectory_balance", "path_kl"
    ),
    "sampler.decay": number(above=0, at_most=1),
    "sampler.tracked_steps": integer(0),
    "sampler.window": choice("last", "random"),
    "adjoint.iterations": integer(1),
    "adjoint.forward_steps": integer(1),
    "adjoint.corrector_steps": integer(1),
    "adjoint.backward_steps": integer(1),
    "adjoint.corrector": choice(
        "auto", *(name for names in CORRECTORS_OF_METHOD.values() for name in names)
    ),
    "adjoint.rollout_every": integer(1),
    "adjoint.rollout_size": integer(1),
    "adjoint.replay_size": integer(1),
    "adjoint.off_policy_ratio": number(at_least=0, at_most=1),
    "adjoint.num_anchors": integer(1),
    "adjoint.max_gradient": number(above=0),
    "adjoint.curvature": number(at_least=0),
    "adjoint.damping": number(at_least=0),
    "diffusion.num_steps": integer(1),
    "fine_tuning.base": file_name(),
    "fine_tuning.base_digest": file_name(),
    "fine_tuning.loss": choice(
        "relative_trajectory_balance",
        "log_variance",
        "control",
        "policy_gradient",
        "adjoint_matching",
    ),
    "fine_tuning.reward.name": text(),
    "fine_tuning.reward.options": mapping(),
    "fine_tuning.temperature": number(above=0),
    "fine_tuning.num_steps": integer(1),
    "fine_tuning.num_paths": integer(1),
    "fine_tuning.tracked_steps": integer(0),
    "fine_tuning.noise": number(above=0, at_most=1),
    "optimiser.name": choice("adamw", "muon"),
    "optimiser.learning_rate": number(above=0),
    "optimiser.backward_ratio": number(above=0),
    "optimiser.schedule": choice("constant", "cosine"),
    "optimiser.warmup_steps": integer(0),
    "optimiser.b2": number(at_least=0, below=1),
    "optimiser.weight_decay": number(at_least=0),
    "optimiser.clip_norm": number(above=0),
    "optimiser.ema_decay": number(at_least=0, below=1),
    "exploration.off_policy_ratio": number(at_least=0, at_most=1),
    "exploration.off_policy_ratio_end": number(at_least=0, at_most=1),
    "exploration.reuse_path": boolean(),
    "exploration.buffer_size": integer(1),
    "exploration.add_ends": boolean(),
    "exploration.priority_power": number(at_least=0),
    "exploration.refresh_method": choice("none", "ula", "averaged_ula", "mala", "hmc"),
    "exploration.refresh_every": integer(1),
    "exploration.refresh_steps": integer(1),
    "exploration.refresh_step_size": number(above=0),
    "exploration.restart_fraction": number(at_least=0, at_most=1),
    "exploration.restart_std": number(above=0),
    "exploration.inverse_temperature_start": number(above=0, at_most=1),
    "exploration.anneal_fraction": number(at_least=0, at_most=1),
    "parallel.backend": choice("pmap", "shard_map"),
    "parallel.cpu_devices": integer(1),
    "parallel.shards": integer(0),
    "loop.steps_per_dispatch": integer(1),
    "loop.checkpoint_every": integer(1),
    "loop.keep": integer(1),
    "loop.keep_best": boolean(),
    "loop.tensorboard": boolean(),
    "loop.max_consecutive_skipped": integer(1),
    "evaluate.num_samples": integer(2),
    "evaluate.num_paths": integer(2),
    "evaluate.flow": boolean(),
    "evaluate.smc": boolean(),
    "evaluate.sinkhorn": boolean(),
    "evaluate.reference": file_name(),
    "evaluate.plots": boolean(),
}
