"""Configurations: layers of defaults, files, words, and the sentence for each kind of mistake."""

import os
import pickle
import subprocess
import sys
from typing import Annotated, ClassVar

import pytest
from pydantic import Field, field_validator

from hpc_maml.algorithms import Algorithm
from hpc_maml.algorithms.algorithm import AlgorithmSettings
from hpc_maml.config import (
    EvaluationConfig,
    check_config,
    differing_keys,
    fingerprint,
    load_config,
    resolve,
    to_yaml,
)
from hpc_maml.config_page import config_text
from hpc_maml.envs.bandit import Bandit
from hpc_maml.errors import InputError
from hpc_maml.policies import NETWORKS, Network, NetworkSettings


class SmallSettings(AlgorithmSettings):
    clip: Annotated[float, Field(gt=0, lt=1)] = Field(0.3, description="limit of the ratio")
    epochs: int = 5


class Small(Algorithm):
    """An algorithm of a user's own."""

    Settings = SmallSettings
    defaults: ClassVar = {
        "num_iterations": 77,
        "fast_batch_size": 10,
        "policy": {"activation": "relu", "no_key_of_a_perceptron": 3},
    }

    def num_phases(self, evaluation):
        return 1

    def digest(self, state, phases):
        return None

    def update(self, state, digests, num_tasks, reduce, rng):
        raise NotImplementedError


class OnTiny(Small):
    defaults: ClassVar = {"policy": {"name": "tiny"}}


class DemandingSettings(AlgorithmSettings):
    clip: float

    @field_validator("clip")
    @classmethod
    def _check_clip(cls, clip):
        if clip == 0.3:
            raise ValueError("too round")
        return clip


class Demanding(Small):
    Settings = DemandingSettings
    defaults: ClassVar = {}


class TinySettings(NetworkSettings):
    units: int = 4


class Tiny(Network):
    Settings = TinySettings

    @classmethod
    def make(cls, settings, sizes):
        return cls()

    @property
    def shapes(self):
        return {}

    def initialise(self, layers, rng):
        pass


class LongBandit(Bandit):
    """An environment of a user's own, with lineages."""

    defaults = Bandit.defaults | {"horizon": 50, "gamma": 0.9, "fast_batch_size": 8}
    lineage_defaults: ClassVar = {
        "gymnasium": {"horizon": 60},
        "old": {"horizon": 70, "fast_batch_size": 9},
    }


SMALL = "algorithm.name=test_config:Small"
LONGEST = 1100  # characters of a sentence
LONG_BANDIT = "env.name=test_config:LongBandit"


@pytest.fixture(autouse=True)
def _tiny_network(monkeypatch):
    monkeypatch.setitem(NETWORKS, "tiny", "test_config:Tiny")


def refusal(files, *words):
    """Return the sentence with which a configuration is refused."""
    with pytest.raises(InputError) as caught:
        load_config(files, words)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= LONGEST
    return str(caught.value)


class TestDefaults:
    def test_of_the_keys_are_those_of_the_pytorch_lineage_on_navigation(self):
        config = load_config(None)
        assert (config.env.name, config.env.kwargs, config.num_iterations) == ("navigation", {}, 40)
        assert (config.meta_batch_size, config.fast_batch_size, config.horizon) == (20, 20, 100)
        assert (config.gamma, config.gae_lambda) == (0.99, 0.95)
        assert config.normalise_observations is False
        trpo = config.algorithm
        assert (trpo.name, trpo.fast_lr, trpo.num_inner_steps) == ("maml_trpo", 0.1, 1)
        assert (trpo.max_kl, trpo.cg_iters, trpo.cg_damping) == (3e-2, 2, 1e-5)
        assert (trpo.cg_memory, trpo.cg_preconditioner) == (20, "none")
        assert config.policy.model_dump() == {
            "name": "mlp",
            "hidden_sizes": [64, 64],
            "activation": "tanh",
        }

    def test_of_an_environment(self):
        config, sources = resolve(None, ["env.name=bandit"])
        assert (config.horizon, config.meta_batch_size, config.algorithm.fast_lr) == (10, 40, 1.0)
        assert config.num_iterations == 100
        assert sources == {
            "num_iterations": "environment",
            "meta_batch_size": "environment",
            "horizon": "environment",
            "algorithm.fast_lr": "environment",
            "env.name": "word",
        }

    def test_of_a_lineage(self):
        words = ["env.name=half_cheetah_vel", "env.kwargs={lineage: original}"]
        config, sources = resolve(None, words)
        assert (config.horizon, config.num_iterations, config.meta_batch_size) == (200, 800, 40)
        assert (config.policy.hidden_sizes, config.policy.activation) == ([100, 100], "relu")
        assert config.algorithm.fast_lr == 0.1
        assert sources["horizon"] == sources["policy.activation"] == "lineage original"
        assert sources["meta_batch_size"] == "environment"
        assert "algorithm.fast_lr" not in sources

    def test_of_the_lineage_that_nobody_names(self):
        config, sources = resolve(None, ["env.name=ant_goal"])
        assert (config.horizon, config.num_iterations) == (100, 500)
        assert (sources["horizon"], sources["num_iterations"]) == (
            "lineage gymnasium",
            "environment",
        )

    def test_a_published_lineage_of_navigation(self):
        config = load_config(None, ["env.kwargs.lineage=original"])
        assert (config.algorithm.fast_lr, config.policy.hidden_sizes) == (0.5, [100, 100])
        assert (config.horizon, config.meta_batch_size, config.num_iterations) == (100, 20, 40)

    @pytest.mark.parametrize(
        ("name", "horizon"),
        [
            ("Pendulum-v1", 200),
            ("gymnasium.envs.classic_control:CartPole-v1", 500),
            ("hpc_maml/Navigation-v0", 100),  # registered without a limit
            ("gymnasium.envs.classic_control:PendulumEnv", 100),  # a class has none
        ],
    )
    def test_horizon_of_a_registered_environment(self, name, horizon):
        assert load_config(None, [f"env.name={name}"]).horizon == horizon

    def test_of_the_algorithm(self):
        config, sources = resolve(None, [SMALL])
        assert (config.num_iterations, config.fast_batch_size) == (77, 10)
        assert config.policy.activation == "relu"
        assert config.algorithm.model_dump() == {
            "name": "test_config:Small",
            "clip": 0.3,
            "epochs": 5,
        }
        assert sources == {
            "num_iterations": "algorithm",
            "fast_batch_size": "algorithm",
            "policy.activation": "algorithm",
            "horizon": "lineage gymnasium",
            "algorithm.name": "word",
        }

    def test_the_algorithm_may_choose_the_network(self):
        small = "algorithm.name=test_config:OnTiny"
        config = load_config(None, [small, "env.kwargs.lineage=original"])
        assert config.policy == TinySettings(name="tiny", units=4)  # no hidden_sizes
        assert load_config(None, [small, "policy.name=mlp"]).policy.hidden_sizes == [64, 64]

    def test_a_step_size_is_for_algorithms_that_have_one(self):
        config, sources = resolve(None, [SMALL, "env.name=bandit"])
        assert not hasattr(config.algorithm, "fast_lr")
        assert "algorithm.fast_lr" not in sources
        pretrain = load_config(None, ["algorithm.name=pretrain", "env.name=bandit"])
        assert pretrain.algorithm.fast_lr == 1.0


def test_each_layer_overrides_those_before_it(tmp_path):
    """The keys: gamma of the environment, horizon, fast_batch_size, num_iterations, seed."""
    file = tmp_path / "c.yaml"
    file.write_text("num_iterations: 5\nseed: 6\n")

    def found(files, *words):
        config = load_config(files, [LONG_BANDIT, *words])
        keys = ("gamma", "horizon", "fast_batch_size", "num_iterations", "seed")
        return tuple(getattr(config, key) for key in keys)

    old = "env.kwargs.lineage=old"
    assert found(None) == (0.9, 60, 8, 100, 1)
    assert found(None, old) == (0.9, 70, 9, 100, 1)
    assert found(None, old, SMALL) == (0.9, 70, 10, 77, 1)
    assert found(file, old, SMALL) == (0.9, 70, 10, 5, 6)
    assert found(file, old, SMALL, "seed=7") == (0.9, 70, 10, 5, 7)


class TestFilesAndWords:
    def test_words_override_the_file(self, tmp_path):
        file = tmp_path / "c.yaml"
        file.write_text("seed: 3\nalgorithm:\n  max_kl: 2.0e-2\n  cg_iters: 5\n")
        words = ["algorithm.cg_iters=7", "algorithm.fast_lr=5e-1", "env.name=ant_vel"]
        config = load_config(str(file), words)
        assert (config.seed, config.algorithm.max_kl, config.algorithm.cg_iters) == (3, 0.02, 7)
        assert (config.algorithm.fast_lr, config.env.name) == (0.5, "ant_vel")

    def test_files_are_merged_in_order(self, tmp_path):
        first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
        first.write_text("seed: 3\nenv: {name: ant_dir, kwargs: {lineage: original}}\nhorizon: 7\n")
        second.write_text("seed: 4\nenv: {name: bandit}\npolicy: {activation: relu}\n")
        config, sources = resolve([first, second], ["env.kwargs={arms: 3}"])
        assert (config.seed, config.horizon, config.num_iterations) == (4, 7, 100)
        assert (config.env.name, config.env.kwargs) == ("bandit", {"arms": 3})
        assert sources["seed"] == sources["policy.activation"] == f"file {second}"
        assert (sources["horizon"], sources["env.kwargs"]) == (f"file {first}", "word")
        assert load_config([first]) == load_config(first) == load_config(str(first))

    def test_keyword_arguments_are_replaced_whole_or_one_by_one(self, tmp_path):
        file = tmp_path / "c.yaml"
        file.write_text("env: {name: bandit, kwargs: {arms: 3, rewards: gaussian}}\n")
        one = load_config(file, ["env.kwargs.arms=4"])
        assert one.env.kwargs == {"arms": 4, "rewards": "gaussian"}
        assert load_config(file, ["env.kwargs={arms: 4}"]).env.kwargs == {"arms": 4}
        deep = load_config(file, ["env.kwargs.a.b=1", "env.kwargs.a.c=2"])
        assert deep.env.kwargs["a"] == {"b": 1, "c": 2}

    def test_a_word_may_be_a_section(self):
        config = load_config(None, ["algorithm={name: pretrain, max_kl: 0.5}", "policy={}"])
        assert (config.algorithm.name, config.algorithm.max_kl) == ("pretrain", 0.5)

    def test_an_empty_file_changes_nothing(self, tmp_path):
        file = tmp_path / "c.yaml"
        file.write_text("# nothing\n")
        assert load_config(file) == load_config(None) == load_config([]) == check_config({})

    @pytest.mark.parametrize(
        ("text", "number"), [("010", 10), ("008", 8), ("0o10", 8), ("0x1F", 31), ("+3", 3)]
    )
    def test_integers_are_those_of_yaml_1_2(self, text, number):
        assert load_config(words=[f"seed={text}"]).seed == number

    def test_dates_are_words(self, tmp_path):
        config = load_config(None, ["env.kwargs={start: 2020-01-01, at: 2020-01-01 10:00:00}"])
        assert config.env.kwargs == {"start": "2020-01-01", "at": "2020-01-01 10:00:00"}
        file = tmp_path / "c.yaml"
        file.write_text(to_yaml(config))
        assert load_config(file) == config

    def test_on_off_yes_and_no_are_words(self, tmp_path):
        words = ["metrics.tensorboard=off", "env.kwargs={a: yes, b: true, c: NO, d: '1e5'}"]
        config = load_config(None, words)
        assert config.metrics.tensorboard == "off"
        assert config.env.kwargs == {"a": "yes", "b": True, "c": "NO", "d": "1e5"}
        file = tmp_path / "c.yaml"
        file.write_text(to_yaml(config))
        assert load_config(str(file)) == config

    @pytest.mark.parametrize("word", ["on", "off", "auto", "'on'"])
    def test_a_choice_reads_back(self, word, tmp_path):
        config = load_config(None, [f"mpi.cuda_aware={word}"])
        assert config.mpi.cuda_aware == word.strip("'")
        file = tmp_path / "c.yaml"
        file.write_text(to_yaml(config))
        assert load_config(str(file)) == config

    @pytest.mark.parametrize("words", [["seed=7"], [SMALL], [LONG_BANDIT, "policy.name=tiny"]])
    def test_resolved_yaml_reads_back(self, words, tmp_path):
        config = load_config(None, words)
        file = tmp_path / "c.yaml"
        file.write_text(to_yaml(config))
        assert load_config(file) == config
        assert check_config(config.model_dump()) == config


class TestMistakes:
    @pytest.mark.parametrize(
        ("word", "sentence"),
        [
            (
                "algorithm.maxkl=1",
                "Unknown config key 'algorithm.maxkl' (did you mean 'algorithm.max_kl'?).",
            ),
            ("meta_batch=3", "Unknown config key 'meta_batch' (did you mean 'meta_batch_size'?)."),
            ("fast_lr=0.1", "Unknown config key 'fast_lr' (did you mean 'algorithm.fast_lr'?)."),
            (
                "trpo.max_kl=0.1",
                "Unknown config key 'trpo.max_kl' (did you mean 'algorithm.max_kl'?).",
            ),
            ("trpo.maxkl=1", "Unknown config key 'trpo.maxkl' (did you mean 'algorithm.max_kl'?)."),
            ("algorithm.seed=1", "Unknown config key 'algorithm.seed' (did you mean 'seed'?)."),
            (
                "every=1",
                "Unknown config key 'every' (did you mean 'checkpoint.every' or "
                "'evaluation.every'?).",
            ),
            ("polcy.units=1", "Unknown config key 'polcy.units' (did you mean 'policy'?)."),
            ("aggregation=exact", "Unknown config key 'aggregation'."),
            (
                "algorithm.clip=0.2",
                "Unknown config key 'algorithm.clip': algorithm maml_trpo has fast_lr, "
                "num_inner_steps, ",
            ),
            ("policy.units=3", "'policy.units': policy mlp has hidden_sizes, activation."),
            ("algorithm.max_kl=-1", "'algorithm.max_kl' must be greater than 0 (got -1)."),
            ("seed=1.5", "Config key 'seed' must be a valid integer (got 1.5)."),
            ("seed={}", "Config key 'seed' must be a valid integer (got {})."),
            (
                "num_iterations=true",
                "Config key 'num_iterations' must be a valid integer (got True).",
            ),
            ("device=gpu", "Config key 'device' must be 'auto', 'cpu' or 'cuda' (got 'gpu')."),
            ("topology.agents=x", "Config key 'topology.agents' must be a valid integer or 'auto'"),
            ("algorithm.fast_lr=.nan", "Config key 'algorithm.fast_lr' must be"),
            ("algorithm.cg_damping=.inf", "Config key 'algorithm.cg_damping' must be"),
            ("policy.hidden_sizes=[8, 0]", "Config key 'policy.hidden_sizes' must be greater than"),
            ("mpi.cuda_aware=[]", "Config key 'mpi.cuda_aware' must be 'auto', 'on' or 'off'"),
            ("seed.x=1", "Config key 'seed' must be a valid integer"),
            (
                "algorithm=pretrain",
                "Config key 'algorithm' is a section of keys, such as algorithm.name (got "
                "'pretrain').",
            ),
            ("env.kwargs=3", "Config key 'env.kwargs' must be a valid dictionary (got 3)."),
            ("env.name=3", "Config key 'env.name' must be a valid string (got 3)."),
            ("algorithm.name=3", "Config key 'algorithm.name' must be a valid string (got 3)."),
            ("policy.name=[mlp]", "Config key 'policy.name' must be a valid string (got ['mlp'])."),
            (
                "env.name=bandid",
                "Config key 'env.name': there is no environment 'bandid' (did you mean 'bandit'?)",
            ),
            (
                "algorithm.name=maml",
                "There is no algorithm 'maml' (did you mean 'maml_trpo'?); there are",
            ),
            ("policy.name=mpl", "There is no policy 'mpl' (did you mean 'mlp'?); there are"),
            ("algorithm.name=nowhere:A", "The module of the algorithm 'nowhere:A' cannot be"),
            ("fast", "'fast' is not understood: settings are written key=value."),
            ("=1", "'=1' is not understood: settings are written key=value."),
            ("seed=[1", "is not valid YAML"),
            ("seed=1_000", "'seed'"),
            ("seed=1:30", "'seed'"),
            ("seed=2024-13-45", "must be a valid integer (got '2024-13-45')"),
            ("seed=!!int x", "the value of seed is not valid YAML"),
            ("env.kwargs={a: 1, a: 2}", "the key 'a' occurs twice"),
            ('seed=!!int ""', "the value of seed is not valid YAML: invalid literal for int"),
            ("seed=!!map [1]", "the value of seed is not valid YAML: a tag does not fit its value"),
            ("seed=!!timestamp x", "could not determine a constructor for the tag"),
            ("env.kwargs={a: !!binary aGk=}", "could not determine a constructor for the tag"),
            ("env.kwargs={a: !!set {b}}", "could not determine a constructor for the tag"),
            ("seed=1" + 400 * ":10" + ".5", "must be a valid integer"),
            ("seed=0x" + 5000 * "f", "the value of seed is not valid YAML: Exceeds the limit"),
            ("env.kwargs={a: 0x" + 5000 * "f" + "}", "is not valid YAML: Exceeds the limit"),
            ("env.kwargs={<<: {a: 1}}", "merge keys (<<) are not read"),
            ("env.kwargs={a: &a [1], b: *a}", "aliases (*a) are not read"),
            ("env.kwargs=&a {a: *a}", "aliases (*a) are not read"),
            ("env.kwargs={a: " + 60 * "[" + 60 * "]" + "}", "go 50 levels deep at most"),
            ("env.kwargs" + 2000 * ".a" + "=1", "keys go 50 levels deep at most"),
            ("seed=" + 100_000 * "x", "Config key 'seed' must be a valid integer (got 'xxx"),
            (100_000 * "x" + "=1", "Unknown config key 'xxx"),
            (100_000 * "x", "xxx' is not understood: settings are written key=value."),
            ("env.name=" + 100_000 * "x", "Config key 'env.name': there is no environment 'xxx"),
            ("algorithm.name=" + 100_000 * "x" + ":X", "The module of the algorithm 'xxx"),
        ],
        ids=lambda text: text[:40],
    )
    def test_are_one_sentence(self, word, sentence):
        assert sentence in refusal(None, word)

    def test_a_key_of_another_algorithm(self):
        assert refusal(None, SMALL, "algorithm.fast_lr=0.1") == (
            "Unknown config key 'algorithm.fast_lr': algorithm test_config:Small has clip, epochs."
        )
        assert refusal(None, SMALL, "algorithm.clip=2") == (
            "Config key 'algorithm.clip' must be less than 1 (got 2)."
        )
        assert "'algorithm.num_inner_steps': algorithm pretrain has fast_lr, max_kl" in refusal(
            None, "algorithm.name=pretrain", "algorithm.num_inner_steps=2"
        )

    def test_a_key_of_another_network(self):
        assert refusal(None, "policy.name=tiny", "policy.hidden_sizes=[4]") == (
            "Unknown config key 'policy.hidden_sizes': policy tiny has units."
        )

    def test_a_key_without_a_default(self):
        demanding = "algorithm.name=test_config:Demanding"
        assert refusal(None, demanding) == (
            "Config key 'algorithm.clip' has no default: give it a value."
        )
        assert load_config(None, [demanding, "algorithm.clip=0.5"]).algorithm.clip == 0.5
        assert refusal(None, demanding, "algorithm.clip=0.3") == (
            "Config key 'algorithm.clip' is refused: too round (got 0.3)."
        )

    def test_words_that_reach_into_a_value(self):
        assert refusal(None, "env.kwargs.arms=3", "env.kwargs.arms.x=1") == (
            "env.kwargs.arms.x: there are no keys in 3."
        )
        assert refusal(None, "seed=3", "seed.x=1") == "seed.x: 'seed' is not a section of keys."

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ("- 1\n", "config file"),
            ("a: [\n", "config file"),
            ("\x00", "config file"),
            ("policy:\nseed: 1\n", "'policy' is a section of keys, such as policy.name (got None)"),
            ("fast_lr: 0.1\n", "(did you mean 'algorithm.fast_lr'?)"),
            ("trpo:\n  max_kl: 0.1\n", "'trpo.max_kl' (did you mean 'algorithm.max_kl'?)"),
            ("1: 2\n", "Unknown config key '1'."),
        ],
    )
    def test_in_a_file(self, tmp_path, content, sentence):
        file = tmp_path / "c.yaml"
        file.write_text(content)
        assert sentence in refusal(str(file))

    def test_aliases_that_stand_for_more_than_the_memory(self, tmp_path):
        levels = [f"a{n}: &a{n} [{', '.join(10 * [f'*a{n - 1}'])}]" for n in range(1, 11)]
        file = tmp_path / "bomb.yaml"
        file.write_text("\n".join(["a0: &a0 [" + ", ".join(10 * "x") + "]", *levels]))
        assert "aliases (*a0) are not read: write the value again" in refusal(file)

    def test_merge_keys(self, tmp_path):
        file = tmp_path / "merged.yaml"
        file.write_text("env:\n  <<: {name: bandit}\n")
        assert "merge keys (<<) are not read" in refusal(file)

    def test_what_is_no_regular_file(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path / "pipe", "/dev/zero"):
            assert refusal(path) == f"The config file {path} is not a regular file."

    def test_a_file_that_is_too_long(self, tmp_path):
        file = tmp_path / "long.yaml"
        file.write_text("seed: " + 400_000 * "x")
        assert refusal(file) == f"The config file {file} is too long: 262144 characters at most."

    def test_a_value_in_two_places_is_written_twice(self, tmp_path):
        """Aliases are not read, so they must not be written."""
        ranges = [1, 2]
        data = {"env": {"name": "bandit", "kwargs": {"a": ranges, "b": ranges}}}
        config = check_config(data)
        file = tmp_path / "config.yaml"
        file.write_text(to_yaml(config))
        assert load_config(file) == config

    def test_a_key_on_two_lines(self):
        assert refusal(None, "a\nb=3") == r"Unknown config key 'a\nb'."

    def test_missing_file(self):
        assert "cannot be read: No such file" in refusal("nowhere.yaml")

    @pytest.mark.parametrize("algorithm", ["maml", "pretrain"])
    def test_a_run_of_the_old_layout(self, tmp_path, algorithm):
        file = tmp_path / "config.yaml"
        file.write_text(f"algorithm: {algorithm}\naggregation: exact\nfast_lr: 0.1\n")
        assert refusal(file) == (
            f"The config file {file} was written by an older hpc_maml (0.1 layout): its run can "
            "be read, reported and inspected, but not continued or tested."
        )


class TestAsAnObject:
    @pytest.mark.parametrize("words", [[], [SMALL], ["policy.name=tiny", "seed=3"]])
    def test_pickles(self, words):
        config = load_config(None, words)
        again = pickle.loads(pickle.dumps(config))
        assert again == config
        assert type(again) is type(config)

    def test_a_pickle_needs_no_environment(self):
        config = load_config(None, ["env.name=bandit"])
        moved = config.model_copy(update={"env": config.env.model_copy(update={"name": "gone"})})
        assert pickle.loads(pickle.dumps(moved)) == moved

    def test_copies_with_changes(self):
        config = load_config(None, ["env.name=bandit"])
        changed = config.model_copy(update={"evaluation": EvaluationConfig(updates=9), "seed": 2})
        assert (changed.evaluation.updates, changed.seed, changed.horizon) == (9, 2, 10)
        assert (config.evaluation.updates, config.seed) == (3, 1)
        assert pickle.loads(pickle.dumps(changed)) == changed

    def test_only_keys_that_change_results_make_another_run(self):
        config = load_config(None)
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
        other = load_config(None, ["seed=2", "algorithm.max_kl=0.5"])
        assert fingerprint(neutral) == fingerprint(config) != fingerprint(other)
        assert differing_keys(config, neutral) == []
        assert differing_keys(config, other) == ["seed", "algorithm.max_kl"]

    def test_a_layout_that_is_no_more(self, tmp_path):
        sentence = "Config key 'topology.layout' is refused: use team, in which every rank"
        with pytest.raises(InputError, match=sentence):
            load_config(None, ["topology.layout=colocated"])
        file = tmp_path / "config.yaml"  # of an older run, which goes on
        file.write_text("topology: {layout: colocated}")
        assert load_config(file).topology.layout == "team"

    def test_another_algorithm_is_another_run(self):
        one, other = load_config(None), load_config(None, ["algorithm.name=pretrain"])
        assert differing_keys(one, other) == [
            "algorithm.name",
            "algorithm.num_inner_steps",
            "algorithm.learn_step_sizes",
            "algorithm.first_order",
            "algorithm.inner_loss",
        ]


class TestPage:
    """What ``hpc_maml config`` prints."""

    def test_says_what_a_key_means_and_where_its_value_comes_from(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "c.yaml").write_text("env: {name: ant_vel, kwargs: {lineage: original}}\n")
        page = config_text("c.yaml", ["seed=3"])
        lines = {line.partition(":")[0].strip(): line for line in page.splitlines()}
        column = lines["seed"].index("#")
        assert lines["seed"] == "seed: 3".ljust(column) + "# seed of all random numbers [word]"
        assert lines["gamma"] == "gamma: 0.99".ljust(column) + "# discount factor"
        assert lines["meta_batch_size"].endswith("# tasks per iteration [environment]")
        assert lines["horizon"].endswith(" at most [lineage original]")
        assert lines["name"] == (  # of the last section that has one
            "  name: maml_trpo".ljust(column) + "# maml_trpo, promp, rl2, pretrain, or module:Class"
        )
        assert "docs/environments.md [file c.yaml]" in page

    @pytest.mark.parametrize(
        "words",
        [
            [],
            ["env.name=bandit", "env.kwargs={arms: 3, rewards: gaussian}", "metrics.wandb=off"],
            [SMALL, "policy.name=tiny", "normalise_observations=true"],
            [
                "env.kwargs={a: '#', b: [1.5, {c: null}], d: '1e5', e: \"x\\ny\"}",
                "env.kwargs.long={one: [1, 2, 3], another: [four, five, six], a_third: 7.5e+20}",
                "algorithm.cg_damping=1e-9",
            ],
        ],
    )
    def test_loads_back_equal(self, words, tmp_path):
        file = tmp_path / "page.yaml"
        file.write_text(config_text(None, words))
        config, sources = resolve(file)
        assert config == load_config(None, words)
        assert set(sources.values()) - {f"file {file}"} == set()  # every key stands there

    def test_is_aligned_and_no_wider_than_a_hundred_columns(self):
        page = config_text(None, ["env.name=half_cheetah_vel", "env.kwargs.lineage=original"])
        rows = [line for line in page.splitlines() if "# " in line and not line.startswith("#")]
        assert len(rows) > 35
        assert len({line.index("# ") for line in rows}) == 1
        assert max(map(len, page.splitlines())) <= 100

    def test_mistakes_are_those_of_a_job(self):
        with pytest.raises(InputError, match=r"did you mean 'algorithm\.fast_lr'"):
            config_text(None, ["fast_lr=1"])


def test_navigation_and_perceptrons_import_neither_mujoco_nor_torch():
    code = (
        "import sys, hpc_maml.config as c; c.load_config(None, ['env.name=bandit']); "
        "c.load_config(None, []); print({'mujoco', 'torch', 'mpi4py'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
    )
    assert found.stdout == "set()\n"
