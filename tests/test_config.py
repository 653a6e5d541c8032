"""Configurations: defaults, overrides, and the sentence for each kind of mistake."""

import pytest

from hpc_maml.config import Config, differing_keys, fingerprint, load_config, to_yaml
from hpc_maml.errors import InputError


def test_defaults_are_those_of_the_pytorch_lineage():
    config = Config()
    assert (config.meta_batch_size, config.fast_batch_size, config.horizon) == (20, 20, 100)
    assert (config.fast_lr, config.gamma, config.gae_lambda) == (0.1, 0.99, 1.0)
    assert (config.trpo.max_kl, config.trpo.cg_iters, config.trpo.cg_damping) == (1e-2, 10, 1e-5)
    assert config.policy.hidden_sizes == [64, 64]


def test_words_override_the_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("seed: 3\ntrpo:\n  max_kl: 2.0e-2\n  cg_iters: 5\n")
    config = load_config(str(file), ["trpo.cg_iters=7", "fast_lr=5e-1", "env.name=ant_vel"])
    assert (config.seed, config.trpo.max_kl, config.trpo.cg_iters) == (3, 0.02, 7)
    assert (config.fast_lr, config.env.name) == (0.5, "ant_vel")


def test_on_off_yes_and_no_are_words(tmp_path):
    config = load_config(None, ["metrics.tensorboard=off", "env.kwargs={a: yes, b: true, c: NO}"])
    assert config.metrics.tensorboard == "off"
    assert config.env.kwargs == {"a": "yes", "b": True, "c": "NO"}
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(config))
    assert load_config(str(file), []) == config


def test_resolved_yaml_reads_back(tmp_path):
    config = load_config(None, ["seed=7", "env.kwargs.lineage=gymnasium"])
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(config))
    assert load_config(str(file), []) == config


@pytest.mark.parametrize("word", ["on", "off", "auto", "'on'"])
def test_on_and_off_are_words(word, tmp_path):
    config = load_config(None, [f"mpi.cuda_aware={word}"])
    assert config.mpi.cuda_aware == word.strip("'")
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(config))
    assert load_config(str(file), []) == config


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("trpo.maxkl=1", "Unknown config key 'trpo.maxkl' (did you mean 'trpo.max_kl'?)."),
        ("meta_batch=3", "Unknown config key 'meta_batch' (did you mean 'meta_batch_size'?)."),
        ("trpo.max_kl=-1", "Config key 'trpo.max_kl' must be greater than 0 (got -1)."),
        ("seed=1.5", "Config key 'seed' must be a valid integer (got 1.5)."),
        ("num_iterations=true", "Config key 'num_iterations' must be a valid integer (got True)."),
        ("device=gpu", "Config key 'device' must be 'auto', 'cpu' or 'cuda' (got 'gpu')."),
        ("topology.agents=x", "Config key 'topology.agents' must be a valid integer or 'auto'"),
        ("aggregation=average", "Config key 'aggregation' must be 'exact' (got 'average')."),
        ("fast_lr=.nan", "Config key 'fast_lr' must be"),
        ("mpi.cuda_aware=[]", "Config key 'mpi.cuda_aware' must be 'auto', 'on' or 'off'"),
        ("seed.x=1", "Config key 'seed' must be a valid integer"),
        ("fast", "'fast' is not understood: settings are written key=value."),
        ("seed=[1", "is not valid YAML"),
        ("seed=2024-13-45", "the value of seed is not valid YAML"),
        ("seed=!!int x", "the value of seed is not valid YAML"),
        ("env.kwargs={a: 1, a: 2}", "the key 'a' stands there twice"),
        ("trpo.cg_damping=.inf", "Config key 'trpo.cg_damping' must be"),
    ],
)
def test_mistakes_are_one_sentence(word, sentence):
    with pytest.raises(InputError) as caught:
        load_config(None, [word])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["- 1\n", "a: [\n", "\x00"])
def test_malformed_file(tmp_path, content):
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match="config file"):
        load_config(str(file), [])


def test_missing_file():
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_config("nowhere.yaml", [])


def test_only_keys_that_change_results_make_another_run():
    config = Config()
    neutral = load_config(
        None,
        [
            "num_iterations=7",
            "topology.agents=2",
            "device=cpu",
            "checkpoint.keep=9",
            "metrics.wandb=online",
        ],
    )
    other = load_config(None, ["seed=2", "trpo.max_kl=0.5"])
    assert fingerprint(neutral) == fingerprint(config) != fingerprint(other)
    assert differing_keys(config, neutral) == []
    assert differing_keys(config, other) == ["seed", "trpo.max_kl"]
