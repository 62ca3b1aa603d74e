"""The configuration for Ray Serve that deploy/README.md shows, by Ray's own schema."""

from __future__ import annotations

from importlib import import_module

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from hse_dist.errors import ConfigError
from hse_dist.serve.guard import RETRY_AFTER_SECONDS
from hse_dist.serve.replica import BESIDE, application
from tests.documentation import ROOT, blocks


def test_what_the_page_shows_is_a_configuration_that_makes_the_application():
    (shown,) = (block.text for block in blocks(ROOT / "deploy" / "README.md") if "import_path" in block.text)
    found = ServeDeploySchema.model_validate(yaml.safe_load(shown)).applications[0]
    module, _, name = found.import_path.partition(":")
    assert getattr(import_module(module), name) is application
    replica = application(found.args)._bound_deployment
    assert replica.num_replicas == 4 and replica.ray_actor_options["num_cpus"] == 2
    # what the application refuses must come to it
    assert replica.max_ongoing_requests == 64 + BESIDE
    assert replica._deployment_config.backpressure_config.retry_after_s == RETRY_AFTER_SECONDS


@pytest.mark.parametrize(
    ("raw", "message"), [({}, "export: Field required"), ({"export": "e", "replicas": 0}, "a replica at least")]
)
def test_a_wrong_configuration_is_one_message(raw, message):
    with pytest.raises(ConfigError, match=message):
        application(raw)
