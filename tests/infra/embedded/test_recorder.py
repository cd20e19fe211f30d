"""The recorder on small programs: what it keeps of each request, and what it answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pulumi
import pulumi_aws as aws
import pulumi_kubernetes as kubernetes
import pytest

from infra.embedded.computed import UnknownTypeError
from infra.embedded.graph import Graph, Resource, Secret, tokens_in
from infra.embedded.graph_json import decode, encode
from infra.embedded.monitor import RecordingError
from infra.embedded.recorder import record_program

STACK = "test.foundation"
URN = f"urn:pulumi:{STACK}::flotilla"


def recorded(program: Callable[[], None], **others: Graph) -> dict[str, Resource]:
    """Resources of `program` by logical name."""
    graph = record_program(program, STACK, graphs=others)
    return {resource.name: resource for resource in graph.resources}


def provider() -> aws.Provider:
    return aws.Provider("aws", region="us-east-2")


class Group(pulumi.ComponentResource):
    """A component with one bucket."""

    def __init__(self, name: str, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("test:group:Group", name, None, opts)
        self.bucket = aws.s3.Bucket(f"{name}-bucket", bucket=name, opts=pulumi.ResourceOptions(parent=self))
        self.register_outputs({"bucket": self.bucket.arn})


def test_a_child_knows_its_parent_and_takes_its_provider_and_its_urn_names_the_parents_types() -> None:
    def program() -> None:
        outer = Group("outer", pulumi.ResourceOptions(provider=provider()))
        Group("inner", pulumi.ResourceOptions(parent=outer))

    found = recorded(program)
    assert found["outer"].parent == "" and not found["outer"].custom
    assert found["inner-bucket"].urn == f"{URN}::test:group:Group$test:group:Group$aws:s3/bucket:Bucket::inner-bucket"
    assert found["inner-bucket"].parent == found["inner"].urn
    assert found["inner-bucket"].options.provider == found["aws"].urn == f"{URN}::pulumi:providers:aws::aws"
    assert found["outer"].outputs["bucket"] == "${" + found["outer-bucket"].urn + "#arn}"


def test_a_kind_that_kubernetes_learns_from_a_definition_and_a_chart_are_recorded_with_all_that_they_are_given() -> None:
    def program() -> None:
        cluster = pulumi.ResourceOptions(provider=kubernetes.Provider("kubernetes", kubeconfig="{}"))
        chart = kubernetes.helm.v4.Chart(
            "keda", chart="keda", version="2.21.0", values={"logging": {"level": "info"}}, opts=cluster
        )
        kubernetes.apiextensions.CustomResource(
            "scaled",
            api_version="keda.sh/v1alpha1",
            kind="ScaledObject",
            metadata={"name": "scaled"},
            spec={"maxReplicaCount": 3},
            opts=pulumi.ResourceOptions.merge(cluster, pulumi.ResourceOptions(depends_on=[chart])),
        )

    found = recorded(program)
    scaled, chart = found["scaled"], found["keda"]
    assert scaled.type == "kubernetes:keda.sh/v1alpha1:ScaledObject" and scaled.custom
    assert scaled.inputs == {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": "scaled"},
        "spec": {"maxReplicaCount": 3},
    }
    assert scaled.options.depends_on == (chart.urn,) and scaled.options.provider == found["kubernetes"].urn
    assert chart.inputs == {"chart": "keda", "version": "2.21.0", "values": {"logging": {"level": "info"}}}
    assert chart.options.provider == found["kubernetes"].urn


def test_options_that_the_program_sets_are_recorded_and_others_keep_their_defaults() -> None:
    def program() -> None:
        shared = provider()
        first = aws.s3.Bucket("first", opts=pulumi.ResourceOptions(provider=shared))
        aws.s3.Bucket(
            "second",
            opts=pulumi.ResourceOptions(
                provider=shared,
                protect=True,
                retain_on_delete=True,
                ignore_changes=["force_destroy"],
                replace_on_changes=["bucket"],
                aliases=[pulumi.Alias(name="once")],
                depends_on=[first],
                deleted_with=first,
                delete_before_replace=True,
            ),
        )

    found = recorded(program)
    options = found["second"].options
    assert options.protect and options.retain_on_delete and options.delete_before_replace
    assert options.ignore_changes == ("forceDestroy",)
    assert options.replace_on_changes == ("bucket",)
    assert options.aliases == ("name=once",)
    assert options.depends_on == (found["first"].urn,)
    assert options.deleted_with == found["first"].urn
    assert found["first"].options == type(options)(provider=found["aws"].urn)


def test_what_a_provider_would_compute_is_a_token_in_the_shape_of_its_type() -> None:
    def program() -> None:
        options = pulumi.ResourceOptions(provider=provider())
        cluster = aws.eks.Cluster("cluster", role_arn="role", vpc_config={"subnet_ids": ["subnet"]}, opts=options)
        aws.s3.Bucket(
            "user",
            bucket=pulumi.Output.concat(
                cluster.certificate_authority.data, "|", cluster.identities[0].oidcs[0].issuer, "|", cluster.id
            ),
            tags={"group": cluster.vpc_config.apply(lambda config: str(config.cluster_security_group_id))},
            opts=options,
        )

    found = recorded(program)
    urn = found["cluster"].urn
    paths = ("certificateAuthority.data", "identities.0.oidcs.0.issuer", "id")
    assert found["user"].inputs["bucket"] == "|".join("${" + f"{urn}#{path}" + "}" for path in paths)
    assert tokens_in(found["user"].inputs["tags"]["group"]) == {(urn, "vpcConfig.clusterSecurityGroupId")}
    assert found["cluster"].outputs["roleArn"] == "role", "an input is what the program gave, never a token"


def test_a_custom_resource_gives_back_what_it_got_and_a_misspelt_aws_type_is_no_resource() -> None:
    def program() -> None:
        cluster = kubernetes.Provider("kubernetes", kubeconfig="{}")
        kubernetes.apiextensions.CustomResource(
            "scaler",
            api_version="keda.sh/v1alpha1",
            kind="ScaledObject",
            metadata={"name": "engine"},
            spec={"maxReplicaCount": 4},
            opts=pulumi.ResourceOptions(provider=cluster),
        )

    scaler = recorded(program)["scaler"]
    assert scaler.type == "kubernetes:keda.sh/v1alpha1:ScaledObject"
    assert scaler.inputs["spec"] == scaler.outputs["spec"] == {"maxReplicaCount": 4}

    def misspelt() -> None:
        pulumi.CustomResource("aws:s3/bukket:Bukket", "b", {}, pulumi.ResourceOptions(provider=provider()))

    with pytest.raises(UnknownTypeError, match="bukket"):
        recorded(misspelt)


def test_whole_numbers_stay_whole_and_fractions_stay_fractions() -> None:
    def program() -> None:
        cluster = kubernetes.Provider("kubernetes", kubeconfig="{}", kube_client_settings={"qps": 2.5, "burst": 7})
        kubernetes.core.v1.Service("service", spec={"ports": [{"port": 80}]}, opts=pulumi.ResourceOptions(provider=cluster))

    found = recorded(program)
    port = found["service"].inputs["spec"]["ports"][0]["port"]
    assert port == 80 and isinstance(port, int)
    assert json.loads(found["kubernetes"].inputs["kubeClientSettings"]) == {"qps": 2.5, "burst": 7}


def test_a_secret_stays_marked_where_it_is_and_is_written_nowhere() -> None:
    def program() -> None:
        options = pulumi.ResourceOptions(provider=provider())
        first = aws.s3.Bucket("first", bucket=pulumi.Output.secret("hunter2"), opts=options)
        aws.s3.Bucket("second", bucket=pulumi.Output.concat("see ", first.bucket), tags={"plain": "yes"}, opts=options)
        pulumi.export("told", first.bucket)

    graph = record_program(program, STACK)
    first, second = graph.of_type("aws:s3/bucket:Bucket")
    assert first.inputs["bucket"] == Secret("hunter2")
    assert second.inputs["bucket"] == Secret("see hunter2"), "what is made of a secret is one"
    assert second.inputs["tags"] == {"plain": "yes"}
    assert graph.outputs["told"] == Secret("hunter2")
    for text in (encode(graph), repr(graph), str(first.inputs)):
        assert "hunter2" not in text
    assert encode(graph).count("[secret]") == 3


def test_each_call_for_a_random_password_is_a_value_of_its_own() -> None:
    def program() -> None:
        aws_provider = provider()
        for name in ("one", "two"):
            password = aws.secretsmanager.get_random_password_output(opts=pulumi.InvokeOutputOptions(provider=aws_provider))
            aws.s3.Bucket(name, bucket=password.random_password, opts=pulumi.ResourceOptions(provider=aws_provider))

    found = recorded(program)
    assert found["one"].inputs["bucket"] != found["two"].inputs["bucket"]
    assert found["one"].inputs["bucket"].endswith("#randomPassword}")


def test_a_program_that_asks_the_cloud_is_refused() -> None:
    with pytest.raises(Exception, match=r"getCallerIdentity.*only a cloud can answer"):
        record_program(lambda: pulumi.export("account", aws.get_caller_identity_output().account_id), STACK)
    with pytest.raises(RecordingError, match="reads existing"):
        record_program(lambda: aws.s3.Bucket.get("found", "some-bucket") and None, STACK)


def test_two_resources_of_one_name_are_refused_as_the_engine_would() -> None:
    def program() -> None:
        for _ in range(2):
            aws.s3.Bucket("same", opts=pulumi.ResourceOptions(provider=provider.cached))

    def with_provider() -> None:
        provider.cached = provider()  # type: ignore[attr-defined]
        program()

    with pytest.raises(RecordingError, match=r"two resources .* named 'same'"):
        record_program(with_provider, STACK)


def test_a_reference_gives_what_the_other_stack_exported_and_secrets_stay_secret() -> None:
    earlier = Graph("test.earlier", (), {"name": "plain", "key": Secret("hidden")})

    def program() -> None:
        reference = pulumi.StackReference("earlier", "organization/flotilla/test.earlier")
        options = pulumi.ResourceOptions(provider=provider())
        aws.s3.Bucket("name", bucket=reference.require_output("name"), opts=options)
        aws.s3.Bucket("key", bucket=reference.require_output("key"), opts=options)

    graph = record_program(program, STACK, graphs={"test.earlier": earlier})
    values = {resource.name: resource.inputs["bucket"] for resource in graph.of_type("aws:s3/bucket:Bucket")}
    assert values == {"name": "plain", "key": Secret("hidden")}
    assert graph.references == ("test.earlier",)
    with pytest.raises(RecordingError, match=r"refers to test\.earlier, which has not been recorded"):
        record_program(program, STACK)


def test_configuration_arrives_as_the_engine_hands_it_over() -> None:
    def program() -> None:
        config = pulumi.Config()
        pulumi.export("got", [config.require_int("count"), config.require_object("block"), config.require("text")])

    graph = record_program(program, STACK, values={"count": 3, "block": {"a": [1]}, "text": "t"})
    assert graph.outputs["got"] == [3, {"a": [1]}, "t"]


class _ProgramError(Exception):
    pass


def test_what_a_program_raises_surfaces_as_it_is_and_leaves_nothing_behind(capfd: pytest.CaptureFixture[str]) -> None:
    def failing() -> None:
        bucket = aws.s3.Bucket("bucket", opts=pulumi.ResourceOptions(provider=provider()))
        bucket.arn.apply(lambda _: failing_in_apply())

    def failing_in_apply() -> None:
        raise _ProgramError("in apply")

    def failing_at_once() -> None:
        raise _ProgramError("at once")

    for program, message in ((failing, "in apply"), (failing_at_once, "at once")):
        with pytest.raises(_ProgramError, match=message):
            record_program(program, STACK)
    assert list(recorded(lambda: provider() and None)) == ["aws"]
    assert capfd.readouterr().err == "", "one fault is raised once, not echoed by every output that depends on it"


async def test_it_may_be_called_from_inside_an_event_loop() -> None:
    await asyncio.sleep(0)
    assert list(recorded(lambda: provider() and None)) == ["aws"]


def test_a_graph_read_back_has_the_same_inputs_and_writes_the_same_text(local_graphs: dict[str, Graph]) -> None:
    for graph in local_graphs.values():
        text = encode(graph)
        again = decode(text, "file")
        assert encode(again) == text
        assert [resource.urn for resource in again.resources] == [resource.urn for resource in graph.resources]
        assert json.loads(text)["stack"] == graph.stack
