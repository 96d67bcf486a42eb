"""The commands of `policy-server` and of the repository's `generate.py`, by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote

from policy_server.commands import (
    client,
    clients,
    deployments,
    evaluation,
    export,
    fetch,
    hashed_keys,
    model_report,
    realtime,
    schema_drafts,
    serve,
    served_files,
)
from policy_server.commands.command_line import command, progress_bar, run
from policy_server.formats.model_files import digest_of_path
from policy_server.installation import command_for, serving_command
from policy_server.settings import read_settings

__all__ = ["Commands", "main"]

_URL = "http://127.0.0.1:8000"


class Commands:
    """Prepare, look into, ask, measure and change the policy that Policy Server serves.

    Files are looked for in the working directory, or where POLICY_SERVER_HOME says.
    Exit codes: 0, 1 after an error in one line, 2 for a wrong usage.
    """

    @command
    def copy_server_files(self, path: str, *, if_missing: bool = False) -> Iterator[str]:
        """Serve the policy of a folder: check, copy and unzip it.

        The old files stay if a server could not start with the new ones.

        Args:
            path: Folder with schema.yaml and a policy, such as saved_model.zip; or an example:
                examples/lpoc.
            if_missing: Do nothing where a server has a policy already.
        """
        settings = read_settings()
        if if_missing and served_files.is_served(settings):
            return
        copies = served_files.copy_server_files(Path(path), settings)
        names = " and ".join(
            source.name if source.name == copy.name else f"{source.name}, as {copy.name},"
            for source, copy in copies.items()
        )
        yield f"copied schema.yaml and {names} from {path} to {settings.home.resolve()}"
        yield f"unzipped the policy to {settings.models_path}"
        yield f"serve the policy:  {serving_command()}"
        yield f"look into it:      {command_for('inspect')}"

    @command
    def serve(
        self,
        *,
        host: str | None = None,
        port: int | None = None,
        uds: str | None = None,
        workers: int | None = None,
        reload: bool = False,
        ssl_certfile: str | None = None,
        ssl_keyfile: str | None = None,
        forwarded_allow_ips: str | None = None,
    ) -> Iterator[str]:
        """Serve the policy over HTTP, by uvicorn.

        Settings are POLICY_SERVER_ variables or lines of .env. An option of uvicorn that is not
        here is given by its variable, such as UVICORN_TIMEOUT_KEEP_ALIVE=30.

        Args:
            host: Address to listen on; 0.0.0.0 lets other machines in. 127.0.0.1 if left out.
            port: Port to listen on; 0 takes a free one. 8000 if left out.
            uds: UNIX socket to listen on, in place of a host and a port.
            workers: Web processes, which share the replicas. 1 if left out.
            reload: Start again when schema.yaml or the policy's file changes.
            ssl_certfile: Certificate, for https.
            ssl_keyfile: Key of the certificate.
            forwarded_allow_ips: Proxies whose x-forwarded headers are believed, with commas
                between them; empty for none. 127.0.0.1 if left out.
        """
        options = {
            "host": host,
            "port": port,
            "uds": uds,
            "workers": workers,
            "ssl_certfile": ssl_certfile,
            "ssl_keyfile": ssl_keyfile,
            "forwarded_allow_ips": forwarded_allow_ips,
        }
        yield from ()
        serve.serve(read_settings(), options, reload=reload)

    @command
    def fetch(self, uri: str, *, schema_uri: str | None = None) -> Iterator[str]:
        """Fetch a policy from s3://, gs://, https:// or a file, and put it in place.

        The old files stay if the new ones are not sound.

        Args:
            uri: Address of the policy's zip or file, or of its folder, which ends in / for s3
                and gs; with #sha256=... behind it, no other content is taken.
            schema_uri: Address of schema.yaml, with or without #sha256=... too.
                The schema.yaml that is there stays if left out.
        """
        yield from fetch.fetch(uri, schema_uri, read_settings(), terminal=sys.stderr)

    @command
    def digest(self, path: str) -> Iterator[str]:
        """Print the digest that pins a policy: of its file, or of its folder.

        Args:
            path: File or folder, as it is to be fetched. Of a folder all files count but hidden
                ones and TensorBoard's events.
        """
        yield digest_of_path(Path(path))

    @command
    def hash_key(self, *, random: bool = False) -> Iterator[str]:
        """Print the hash of an access key, for parameters.api_keys in schema.yaml.

        The key is read from the terminal, or from standard input.

        Args:
            random: Make a new key and print it too.
        """
        yield from hashed_keys.hash_key(is_random=random)

    @command
    def unzip(self) -> Iterator[str]:
        """Unzip the policy to models/, as a start of the server does by itself.

        A policy that is one file, such as an ONNX model, is copied there.
        """
        zip_path, models = served_files.unzip(read_settings())
        yield f"unzipped {zip_path} to {models}"

    @command
    def clean(self) -> Iterator[str]:
        """Remove saved_model.zip and what the server made; schema.yaml stays."""
        removed = served_files.clean(read_settings())
        yield from (f"removed {path}" for path in removed)
        if not removed:
            yield "nothing to remove"

    @command
    def inspect(
        self, path: str | None = None, *, policy: str | None = None, json: bool = False
    ) -> Iterator[str]:
        """Show a model's inputs and distribution, and whether schema.yaml fits it.

        Exit code 1 if it doesn't fit.

        Args:
            path: A policy's zip, file or folder, or a folder that holds one.
                The policy being served if left out.
            policy: Name of one of schema.yaml's policies, where it has several.
            json: Print one JSON object.
        """
        source = None if path is None else Path(path)
        report = model_report.inspect_model(source, read_settings(), policy=policy)
        yield from (
            [model_report.report_as_json(report)] if json else model_report.report_as_text(report)
        )
        report.check_fits()

    @command
    def schema(
        self,
        path: str | None = None,
        *,
        module: str | None = None,
        output: str | None = None,
        overwrite: bool = False,
    ) -> Iterator[str]:
        """Draft a schema.yaml that fits a model.

        Args:
            path: A policy's zip, file or folder, or a folder that holds one.
                The policy being served if left out.
            module: Name of the only policy to draft, in a file that holds several, such as an
                RLModule's.
            output: File to write; standard output if left out.
            overwrite: Replace that file if it exists. An example's unchanged schema.yaml is
                replaced without.
        """
        source = None if path is None else Path(path)
        folder = None if output is None else Path(output).parent
        text = schema_drafts.draft_schema(source, read_settings(), module=module, folder=folder)
        if output is None:
            yield from text.splitlines()
        else:
            schema_drafts.write_draft(text, Path(output), overwrite=overwrite)
            yield f"wrote {output}; give the observations their names there"

    @command
    def predict(
        self,
        observation: str | None = None,
        *,
        url: str = _URL,
        key: str | None = None,
        policy: str | None = None,
        deterministic: bool = False,
        distribution: bool = False,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Ask a running server for an action.

        Args:
            observation: JSON, a file with JSON, or - for standard input.
                A list is a flat observation. The server's own example if left out.
            url: Where the server answers.
            key: Its access key; POLICY_SERVER_API_KEY or the local schema.yaml's if left out.
            policy: Name of one of its policies; its default policy if left out.
            deterministic: Ask for the policy's mode instead of a draw.
            distribution: Ask for the exact distribution of the actions.
            seed: Make the draw reproducible.
        """
        answer = client.choose_answer(
            is_deterministic=deterministic, is_distribution=distribution, seed=seed
        )
        api_key = client.find_api_key(key, read_settings())
        with client.PolicyClient(url, api_key, policy=policy) as server:
            if observation is None:
                text = client.example_observation(server)
                print(f"the server's example: {text}", file=sys.stderr)
            else:
                text = client.read_observation(observation, sys.stdin.read)
            yield client.ask(server, text, answer, seed=seed)

    @command
    def realtime(
        self,
        *,
        hz: float = 100.0,
        seconds: float = 10.0,
        transport: str = "http",
        url: str = _URL,
        uds: str | None = None,
        key: str | None = None,
        policy: str | None = None,
        observation: str | None = None,
        deterministic: bool = False,
        deadline_ms: float | None = None,
        spin_us: float = 200.0,
        json: bool = False,
        picture: str | None = None,
    ) -> Iterator[str]:
        """Drive a running server at a fixed rate, and measure its answers.

        Reports round trips, jitter and missed deadlines. The schedule is fixed: a tick that begins
        late because the answer before it came late is asked all the same, and counts from its
        schedule. Ctrl-C ends early and reports what was measured.

        Args:
            hz: Ticks a second, each of which asks once.
            seconds: How long to drive.
            transport: http, on a connection that is kept alive, or stream, a web socket.
            url: Where the server answers.
            uds: The server's UNIX socket, in place of the host and port in the URL.
            key: Its access key; POLICY_SERVER_API_KEY or the local schema.yaml's if left out.
            policy: Name of one of its policies, or several with commas between them, which each
                tick asks one after another; its default policy if left out. One with a memory is
                asked in a session, or by its stream.
            observation: JSON, a file with JSON, - for standard input, or random for random ones in
                the range of the schema. The server's own example if left out.
            deterministic: Ask for the policy's mode instead of a draw.
            deadline_ms: When a tick has to be answered, in milliseconds after its schedule. The
                time of one tick if left out.
            spin_us: How long before a tick the processor is kept busy, in microseconds, since a
                sleep ends late; 0 sleeps to the end.
            json: Print one line of JSON.
            picture: SVG file to write, with a histogram of the round trips.
        """
        options = realtime.LoopOptions(
            hz=hz,
            seconds=seconds,
            transport=transport,
            policies=[] if policy is None else policy.split(","),
            is_deterministic=deterministic,
            observation=observation,
            deadline_ms=deadline_ms,
            spin_us=spin_us,
        )
        place = realtime.Place(url=url, uds=uds, key=client.find_api_key(key, read_settings()))
        yield from realtime.realtime(
            place,
            options,
            realtime.Output(is_json=json, picture=picture),
            read_standard_input=sys.stdin.read,
            show=progress_bar(sys.stderr),
        )

    @command
    def export(
        self,
        policy: str,
        *,
        to: str = "savedmodel",
        output: str | None = None,
        module: str | None = None,
        observation_names: str | None = None,
        action_names: str | None = None,
        normalization: str | None = None,
        overwrite: bool = False,
    ) -> Iterator[str]:
        """Write a policy in another format: as a SavedModel, or as one .onnx file.

        SavedModel: of a stable-baselines3 policy, with a drafted schema.yaml. ONNX: of any policy
        that NumPy computes; the file says what the server has to know, with 20 test vectors.
        Either is written only if its answers are the policy's, within 1e-5, on up to 256 random
        observations. The server takes the policy's own file too.

        Args:
            policy: What model.save() of stable-baselines3 wrote; for ONNX any policy's zip, file or
                folder, or a folder that holds one. The schema.yaml beside it gives names and
                bounds.
            to: savedmodel or onnx.
            output: Folder to write to. If left out, one named after the policy; for ONNX in
                exports/.
            module: Name of the policy in a file that holds several. ONNX alone.
            observation_names: Names in order, such as speed,position:2 for three values. SavedModel
                alone.
            action_names: Names of the action components in order, such as left,right. SavedModel
                alone.
            normalization: What VecNormalize.save() wrote, if it is not the vec_normalize.pkl beside
                the policy; or none, if its observations were not scaled, whatever its file shows.
            overwrite: Replace the files if they exist.
        """
        source, names = Path(policy), (observation_names, action_names)
        folder = export.default_folder(source, to) if output is None else Path(output)
        if export.is_onnx(to, module=module, has_names=names != (None, None)):
            written = export.export_onnx(
                source,
                folder,
                read_settings(),
                module=module,
                normalization=normalization,
                overwrite=overwrite,
            )
            yield f"wrote {written}"
            yield f"look into it:  {command_for(f'inspect {quote(str(written))}')}"
            yield f"draft its schema.yaml:  {command_for(f'schema {quote(str(written))}')}"
            return
        notes: list[str] = []
        paths = export.export_policy(
            source,
            folder,
            observation_names=observation_names,
            action_names=action_names,
            normalization=normalization,
            overwrite=overwrite,
            on_note=notes.append,
        )
        yield from (f"wrote {path}" for path in paths)
        yield from (f"note: {note}" for note in notes)
        yield f"serve it:  {command_for(f'copy_server_files {quote(str(folder))}')}"

    @command
    def clients(
        self, *, languages: str | None = None, output: str = "clients", url: str | None = None
    ) -> Iterator[str]:
        """Write client libraries for the policy, each with an example.

        Args:
            languages: Some of python, java, scala, r, typescript, csharp, go and kotlin with commas
                between them, or all; the first four if left out.
            output: Folder that gets a folder for each language.
            url: Where a server answers, to write them for its policy.
                The policy in this folder if left out.
        """
        chosen, settings = clients.choose_languages(languages), read_settings()
        document = clients.local_document(settings) if url is None else clients.served_document(url)
        yield from clients.write_clients(
            document, chosen, Path(output), settings, on_progress=progress_bar(sys.stderr)
        )

    @command
    def evaluate(
        self,
        path: str,
        *,
        url: str = _URL,
        key: str | None = None,
        policy: str | None = None,
        episodes: int = 100,
        seed: int = 0,
        deterministic: bool = False,
        without_memory: bool = False,
        parallel: int = 8,
        markdown: bool = False,
    ) -> Iterator[str]:
        """Measure policies as a running server serves them, against random actions.

        Args:
            path: Folder with environment.py, such as examples/lpoc.
            url: Where the server answers.
            key: Its access key; POLICY_SERVER_API_KEY or the local schema.yaml's if left out.
            policy: Name of one of its policies; its default policy if left out.
            episodes: How many the policy plays, and how many are played at random.
            seed: Of the episodes and of the draws.
            deterministic: Take the policy's mode instead of a draw.
            without_memory: Ask a policy with memory for each step as for an episode's first.
            parallel: Episodes that are played at once.
            markdown: Print a row of a table for each policy: name, episodes, policy, random.
        """
        api_key = client.find_api_key(key, read_settings())
        result = evaluation.evaluate(
            Path(path),
            lambda: client.PolicyClient(url, api_key, policy=policy),
            episodes=episodes,
            seed=seed,
            is_deterministic=deterministic,
            keeps_memory=not without_memory,
            parallel=parallel,
            on_progress=progress_bar(sys.stderr),
        )
        yield from result.as_markdown() if markdown else result.as_text()

    @command
    def deploy(
        self,
        path: str,
        *,
        policy: str | None = None,
        version: str | None = None,
        traffic: float = 100.0,
        shadow: bool = False,
        url: str = _URL,
        key: str | None = None,
    ) -> Iterator[str]:
        """Deploy a new version of a policy to a running server.

        The old version answers until the new one is loaded and proved; then the traffic moves at
        once. Exit code 1 if the new version can't be served: everything is as it was then.

        Args:
            path: A policy's zip, file or folder, a folder with a policy and its schema.yaml, or an
                address, which the server fetches.
            policy: Name of the policy; the server's default policy if left out.
            version: Name of the new version; v2, v3 and so on if left out.
            traffic: Its share of the questions, in per cent; with 100 it is live at once.
            shadow: Give it copies of the questions, and compare its answers, which nobody gets.
            url: Where the server answers.
            key: Its admin key; POLICY_SERVER_ADMIN_KEY if left out.
        """
        deployments.check_traffic(traffic)
        settings = read_settings()
        with deployments.admin_client(url, key, settings) as server:
            name = _policy_of(server, policy)
            deployed = deployments.deploy(
                server,
                name,
                path,
                settings,
                version=version,
                traffic=traffic,
                is_shadow=shadow,
                on_progress=progress_bar(sys.stderr),
            )
            yield from deployments.as_text(deployed)

    @command
    def promote(
        self,
        *,
        policy: str | None = None,
        version: str | None = None,
        after: int | None = None,
        max_disagreement: float | None = None,
        url: str = _URL,
        key: str | None = None,
    ) -> Iterator[str]:
        """Give all questions to a version that was deployed with less, or as a shadow.

        Args:
            policy: Name of the policy; the server's default policy if left out.
            version: Name of the version; the only candidate if left out.
            after: Wait until so many questions were compared with the live version's answers.
            max_disagreement: Largest share of them that may have another deterministic action, such
                as 0.02 (0 if left out); with more the version is taken back. Only with --after.
            url: Where the server answers.
            key: Its admin key; POLICY_SERVER_ADMIN_KEY if left out.
        """
        deployments.check_evidence(after, max_disagreement)
        with deployments.admin_client(url, key, read_settings()) as server:
            name = _policy_of(server, policy)
            yield from deployments.as_text(
                deployments.promote(
                    server, name, version=version, after=after, max_disagreement=max_disagreement
                )
            )

    @command
    def rollback(
        self, *, policy: str | None = None, url: str = _URL, key: str | None = None
    ) -> Iterator[str]:
        """Take candidates back; without any, make the version before live again.

        Args:
            policy: Name of the policy; the server's default policy if left out.
            url: Where the server answers.
            key: Its admin key; POLICY_SERVER_ADMIN_KEY if left out.
        """
        with deployments.admin_client(url, key, read_settings()) as server:
            name = _policy_of(server, policy)
            yield from deployments.as_text(deployments.roll_back(server, name))

    @command
    def undeploy(
        self,
        version: str,
        *,
        policy: str | None = None,
        url: str = _URL,
        key: str | None = None,
    ) -> Iterator[str]:
        """Unload a version of a policy, once it has answered what it has.

        Args:
            version: Name of the version; not the live one's.
            policy: Name of the policy; the server's default policy if left out.
            url: Where the server answers.
            key: Its admin key; POLICY_SERVER_ADMIN_KEY if left out.
        """
        client.check_name(version, "VERSION")
        with deployments.admin_client(url, key, read_settings()) as server:
            name = _policy_of(server, policy)
            yield from deployments.as_text(deployments.undeploy(server, name, version))

    @command
    def status(
        self,
        *,
        policy: str | None = None,
        url: str = _URL,
        key: str | None = None,
        json: bool = False,
    ) -> Iterator[str]:
        """Show the versions of a running server's policy, with traffic and agreement.

        Args:
            policy: Name of the policy; the server's default policy if left out.
            url: Where the server answers.
            key: Its admin key; POLICY_SERVER_ADMIN_KEY if left out.
            json: Print one JSON object.
        """
        with deployments.admin_client(url, key, read_settings()) as server:
            known = deployments.status(server, _policy_of(server, policy))
            yield from [deployments.as_json(known)] if json else deployments.as_text(known)


def _policy_of(server: client.PolicyClient, policy: str | None) -> str:
    """Return the name of the policy that is meant, which stands in the routes that change it."""
    if policy is not None:
        client.check_name(policy, "--policy")
    return deployments.name_of(server, policy)


def main(arguments: Sequence[str], *, program: str) -> int:
    """Run the command that the arguments name.

    Args:
        arguments: the arguments behind the program's name.
        program: how the program is called, for help and messages.

    Returns:
        The exit code.
    """
    return run(Commands, arguments, program=program)
