"""A policy's slot: its versions, and how its questions are split among them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass

from policy_server.errors import (
    DeploymentError,
    ModelError,
    NotReadyError,
    OtherFilesError,
    PolicyServerError,
)
from policy_server.metrics import Metrics
from policy_server.observations import ObservationSpace
from policy_server.policy import PolicySignature
from policy_server.schema import ServerSchema
from policy_server.serving.process_sessions import ProcessSessions
from policy_server.serving.questions import Answer, Question
from policy_server.serving.session_store import SessionStore
from policy_server.serving.shadow import Shadow
from policy_server.serving.team_record import VersionName
from policy_server.serving.traffic import ALL_TRAFFIC, Episodes, Traffic
from policy_server.serving.version import OpenedPolicy, PolicyVersion
from policy_server.settings import Settings

__all__ = ["PlannedVersion", "PolicyOpener", "PolicySlot", "log_not_served"]

logger = logging.getLogger(__name__)

PolicyOpener = Callable[[], AbstractAsyncContextManager[OpenedPolicy]]

# Asking a replica whether it is ready costs a call: the answer holds for this long.
_READY_FOR_S = 1.0
_MOST_EPISODES = 100_000
# So many versions that are not loaded any more stay on the page of metrics.
_MOST_UNLOADED = 16
_UNNAMED = "version"


@dataclass(frozen=True)
class PlannedVersion:
    """A version that is to be loaded.

    Attributes:
        name: the version's name; empty takes the start of its digest.
        open_policy: loads it, and unloads it again.
        model: the path of its zip or folder, or its address; None for the policy that lies in the
            server's folder.
        percent: its share of the questions, in per cent.
        is_shadow: whether it gets copies of the questions, and answers nobody.
        stands_in_for: the name of the version whose share it takes where that can't be loaded;
            empty for none.
    """

    name: str
    open_policy: PolicyOpener
    model: str | None = None
    percent: float = ALL_TRAFFIC
    is_shadow: bool = False
    stands_in_for: str = ""


class PolicySlot:
    """A policy's name in the server, with the versions that are loaded under it.

    Attributes:
        name: the policy's name.
        schema: its schema.yaml; the types of its routes come from it.
        metrics: counts its questions and answers.
        failure: the reason why the policy could not be loaded; None where it was, or is not yet.
        failures: the reasons of single versions that could not be loaded, by name.
        sessions: keeps the sessions of the policy.
        is_expected: returns whether a version, by its name and digest, was deployed by another
            process, and is to be loaded here.
        on_unloaded: are called each time that a version is unloaded, so that nothing keeps it.
    """

    def __init__(
        self,
        name: str,
        schema: ServerSchema,
        planned: PolicyOpener | Sequence[PlannedVersion],
        *,
        settings: Settings,
        metrics: Metrics,
        sessions: SessionStore | None = None,
    ) -> None:
        """Own the policy's versions, from `start` to `aclose`; nothing is loaded yet.

        Args:
            name: the policy's name.
            schema: its schema.yaml.
            planned: the versions to begin with; for a single one, what loads and unloads it.
            settings: limits, and the prediction log.
            metrics: counts its questions and answers.
            sessions: keeps sessions; None for a store of its own in this process.
        """
        self.name = name
        self.schema = schema
        self._planned = [PlannedVersion("", planned)] if callable(planned) else list(planned)
        self._own = self._planned
        self._is_own_next = False
        self._models: dict[str, str | None] = {}
        self._settings = settings
        self.metrics = metrics.of(name)
        self.sessions = sessions or ProcessSessions(settings, metrics)
        self.is_expected: Callable[[str, str], Awaitable[bool]] = _is_not_expected
        self.on_unloaded: list[Callable[[], None]] = []
        self.failure: str | None = None
        self.failures: dict[str, str] = {}
        self._streams: Counter[PolicyVersion] = Counter()
        self._shadows: dict[str, Shadow] = {}
        self._load_seconds: dict[PolicyVersion, float] = {}
        self._versions: dict[str, PolicyVersion] = {}
        self._resources: dict[PolicyVersion, AsyncExitStack] = {}
        # The names of unloaded versions that are still on the page of metrics, the oldest first.
        self._unloaded: list[str] = []
        self._traffic: Traffic | None = None
        self._episodes = Episodes(most=_MOST_EPISODES, idle_s=settings.episode_idle_s)
        self._space = ObservationSpace(schema.observations)
        self._is_ready: asyncio.Task[bool] | None = None
        self._ready_until = 0.0

    @property
    def versions(self) -> Mapping[str, PolicyVersion]:
        """Return the loaded versions, by name."""
        return self._versions

    @property
    def models(self) -> Mapping[str, str | None]:
        """Return the path or address of each version that was planned, by the version's name."""
        return self._models

    @property
    def shadows(self) -> Mapping[str, Shadow]:
        """Return the versions that get copies of the questions, by name."""
        return self._shadows

    @property
    def traffic(self) -> Traffic | None:
        """Return how the questions are split; None before a version is loaded."""
        return self._traffic

    @property
    def live(self) -> PolicyVersion | None:
        """Return the version with the largest share; None before one is loaded."""
        return None if self._traffic is None else self._traffic.live

    @property
    def signature(self) -> PolicySignature | None:
        """Return the live version's signature; None before one is loaded."""
        return None if self.live is None else self.live.signature

    @property
    def space(self) -> ObservationSpace:
        """Return the observations that are taken: by schema alone before a version is loaded."""
        return self._space if self.live is None else self.live.space

    @property
    def width(self) -> int | None:
        """Return how many numbers an observation has; None where that is open or not known yet."""
        return self.schema.width if self.signature is None else self.signature.observation_width

    def current(self) -> PolicyVersion:
        """Return the live version.

        Raises:
            NotReadyError: if none is loaded.
        """
        return self._split().live

    def choose(self, episode: str = "", *, wanted: str = "") -> PolicyVersion:
        """Return the version that answers a question.

        An episode ends with the version that it began with, whatever the traffic is meanwhile, for
        as long as that version is loaded.

        Args:
            episode: the id of the question's episode; empty for a question of its own.
            wanted: the name of the version that is asked for; empty leaves that to the traffic.

        Raises:
            NotReadyError: if no version is loaded.
            DeploymentError: if the version that is asked for is not loaded.
        """
        traffic = self._traffic or self._split()
        if wanted:
            return self._named(wanted)
        if not episode:
            return traffic.only or traffic.choose("")
        known = self._episodes.version_of(episode)
        if known is not None:
            return known
        version = traffic.choose(episode)
        self._episodes.begin(episode, version)
        return version

    def go_on(self, episode: str, version: PolicyVersion, *, wanted: str = "") -> None:
        """Note that an episode is asked about, whose version is known from its memory.

        Args:
            episode: its id; empty for one that has none.
            version: answers it, and is loaded.
            wanted: the name of the version that is asked for; empty for none.

        Raises:
            DeploymentError: if another version is asked for, or one that is not loaded.
        """
        if wanted and self._named(wanted) is not version:
            raise DeploymentError(
                f"x-policy-version: expected {version.label}, with which this episode began, got "
                f"{wanted}; leave it out, or begin another episode"
            )
        # It may have gone since the request's head was read, while its body came.
        if episode and self.has(version):
            self._episodes.begin(episode, version)

    def end_episode(self, episode: str) -> None:
        """Forget the version of an episode that has ended.

        Args:
            episode: its id.
        """
        self._episodes.forget(episode)

    @property
    def wants_copies(self) -> bool:
        """Return whether a shadow has time for another question.

        Where none has, no answer is asked for the distribution that a shadow compares.
        """
        shadows = self._shadows
        return bool(shadows) and any(shadow.has_room for shadow in shadows.values())

    def copy_to_shadows(self, version: PolicyVersion, question: Question, answer: Answer) -> None:
        """Give the shadows a copy of a question that was answered.

        They get none of a question with a state, which is of no use to another version.

        Args:
            version: the version that answered.
            question: the question.
            answer: its answer.
        """
        for shadow in self._shadows.values() if question.state is None else ():
            shadow.offer(version, question, answer)

    def episodes_of(self, name: str) -> int:
        """Return how many running episodes began with a version.

        Args:
            name: the version's name.
        """
        return self._episodes.of(self._versions[name])

    def has(self, version: PolicyVersion) -> bool:
        """Return whether a version is loaded.

        Args:
            version: one that was loaded.
        """
        # It may be kept under another name than its own.
        return version in self._versions.values()

    async def sessions_of(self, name: str) -> int:
        """Return how many sessions a version answers, streams with memory among them.

        Args:
            name: the version's name.
        """
        version = self._versions[name]
        kept = await self.sessions.count(self.name, version.label, version.digest)
        return self._streams[version] + kept

    def find(self, begun: VersionName) -> PolicyVersion | None:
        """Return a loaded version, under whichever name it is kept by now; None for none.

        Args:
            begun: the version, as the episode knows it.
        """
        version = self._versions.get(begun.label)
        if version is not None and begun.is_of(version.version_name):
            return version
        known = (item for item in self._versions.values() if item.label == begun.label)
        return next((item for item in known if begun.is_of(item.version_name)), None)

    def count_stream(self, version: PolicyVersion, change: int) -> None:
        """Count a stream whose memory is a version's.

        Args:
            version: the version.
            change: 1 when an episode begins on it, -1 when it ends.
        """
        self._streams[version] += change
        if not self._streams[version]:
            del self._streams[version]

    def plan(self, planned: Sequence[PlannedVersion], *, is_own_next: bool = False) -> None:
        """Take other versions to begin with, such as those that were deployed before a restart.

        Args:
            planned: the versions.
            is_own_next: whether the policy's own files are tried where none of these can be loaded.
        """
        self._planned = list(planned)
        self._is_own_next = is_own_next

    async def start(self) -> None:
        """Load the planned versions, and split the questions among them.

        One that can't be loaded leaves its share to the one that stands in for it, else to the
        others. Nothing stands in for the policy's own files that were replaced. Where none that
        answers can be loaded, the policy's own model is tried, whose files may be others than those
        that were deployed, or if `plan` says so.

        Raises:
            PolicyServerError: if no version that answers can be loaded.
        """
        refusals: dict[str, PolicyServerError] = {}
        try:
            await self._start(self._planned, refusals)
        except PolicyServerError:
            are_others = any(isinstance(error, OtherFilesError) for error in refusals.values())
            if not (self._is_own_next or (are_others and self._had_own_model())):
                raise
            # It may have other files by now, and is named after them: they win.
            await self._start(self._own, {})

    def _had_own_model(self) -> bool:
        """Return whether the policy's own model was to be loaded as it was deployed.

        An address to which schema.yaml gives a name stands for the same files under that name.
        """
        named = {item.model for item in self._planned if item.name}
        return any(
            item.model in named and not (item.name and "://" in (item.model or ""))
            for item in self._own
        )

    async def _start(
        self, planned: Sequence[PlannedVersion], refusals: dict[str, PolicyServerError]
    ) -> None:
        loaded: dict[str, PlannedVersion] = {}
        for item in planned:
            try:
                version = await self.add(item.open_policy, name=item.name)
            except PolicyServerError as error:
                refusals[item.name] = error
                self.failures[item.name] = error.message
                log_not_served(self.name, item.name, error)
            else:
                self._models[version.label] = item.model
                loaded[version.label] = item
        percents = self._percents_of(planned, loaded, refusals)
        if not percents:
            assert refusals, "a version that answers was planned, and is not there"
            first = next(iter(refusals.values()))
            self.failure = first.message
            for name in [*self.versions]:
                # Nobody would know of a version that answers nothing.
                await self.remove(name)
            raise first
        self.route(percents, shadows={name for name, item in loaded.items() if item.is_shadow})

    def _percents_of(
        self,
        planned: Sequence[PlannedVersion],
        loaded: Mapping[str, PlannedVersion],
        refusals: Mapping[str, PolicyServerError],
    ) -> Mapping[str, float]:
        """Return the share of each loaded version that answers, by name."""
        own_files = {item.model for item in self._own if "://" not in (item.model or "")}
        left = {
            item.name: item.percent
            for item in planned
            if item.name in refusals
            and not (isinstance(refusals[item.name], OtherFilesError) and item.model in own_files)
        }
        percents = {
            name: item.percent + left.get(item.stands_in_for, 0.0)
            for name, item in loaded.items()
            if not item.is_shadow
        }
        return {name: percent for name, percent in percents.items() if percent}

    async def add(self, open_policy: PolicyOpener, *, name: str = "") -> PolicyVersion:
        """Load a version beside the others; it answers nobody before `route` gives it a share.

        Args:
            open_policy: loads the version, and unloads it again.
            name: the version's name; empty takes the start of its digest.

        Returns:
            The version, which has answered its warm-up.

        Raises:
            ModelError: if it takes other observations, or gives other actions, than those that are
                loaded.
            PolicyServerError: if it can't be loaded or does not answer. Nothing has changed then.
        """
        version = await self.load(open_policy, name=name)
        self.keep(version)
        return version

    async def load(self, open_policy: PolicyOpener, *, name: str = "") -> PolicyVersion:
        """Load a version that nobody can ask for before `keep` puts it beside the others.

        Args:
            open_policy: loads the version, and unloads it again.
            name: the version's name; empty takes the start of its digest.

        Returns:
            The version; `keep` takes it, or `discard` unloads it.

        Raises:
            ModelError: as `add` does.
            PolicyServerError: as `add` does.
        """
        started = time.monotonic()
        async with AsyncExitStack() as stack:
            opened = await stack.enter_async_context(open_policy())
            schema = opened.schema or self.schema
            self._check_fits(opened.backend.signature, schema)
            version = await PolicyVersion.prepare(
                self.name,
                opened,
                schema,
                self._settings,
                self.metrics,
                label=name or self._free_label(opened.digest),
            )
            self._load_seconds[version] = time.monotonic() - started
            self._resources[version] = stack.pop_all()
        return version

    def keep(self, version: PolicyVersion) -> None:
        """Put a version that was loaded beside the others.

        Args:
            version: the version; no other one has its name.
        """
        self._versions[version.label] = version
        self.failures.pop(version.label, None)

    def release(self, name: str) -> PolicyVersion:
        """Take a version that answers nobody from beside the others; it stays loaded.

        Args:
            name: the version's name.
        """
        return self._versions.pop(name)

    async def discard(self, version: PolicyVersion) -> None:
        """Unload a version that is not beside the others.

        Args:
            version: the version.
        """
        del self._load_seconds[version]
        try:
            async with self._resources.pop(version):
                await version.aclose()
        finally:
            self._note_unloaded(version.label)
            for notify in self.on_unloaded:
                notify()

    def route(self, percents: Mapping[str, float], *, shadows: Collection[str] = ()) -> None:
        """Split the questions anew, in one step.

        Args:
            percents: the share of each version that answers, by name; at least one.
            shadows: the names of the versions that get copies.
        """
        self._traffic = traffic = Traffic.split(self._versions, percents)
        self.failure = None
        # Another version's readiness says nothing of this one.
        self._is_ready = None
        for name in [name for name in self._shadows if name not in shadows]:
            self._shadows.pop(name).close()
        for name in shadows:
            if name not in self._shadows:
                self._shadows[name] = Shadow(self._versions[name], self.metrics)
        self.metrics.describe_model(
            version=traffic.live.digest,
            family=traffic.live.signature.family,
            load_seconds=self._load_seconds[traffic.live],
        )

    def rename(self, name: str, key: str) -> None:
        """Keep a loaded version under another name, so that its own is free for a new version.

        It goes on answering, and is still called by its own name in answers and metrics.

        Args:
            name: the name that it is kept under.
            key: the other one.
        """
        self._versions[key] = self._versions.pop(name)
        if (shadow := self._shadows.pop(name, None)) is not None:
            self._shadows[key] = shadow

    async def remove(self, name: str) -> None:
        """Unload a version that has no share; it answers the questions that it has.

        Args:
            name: the version's name.
        """
        version = self._versions.pop(name)
        self._episodes.end(version)
        if (shadow := self._shadows.pop(name, None)) is not None:
            shadow.close()
        await self.discard(version)

    def _note_unloaded(self, label: str) -> None:
        """Drop the metrics of versions that were unloaded long ago: their names never end."""
        self._unloaded = [*(name for name in self._unloaded if name != label), label]
        if len(self._unloaded) > _MOST_UNLOADED:
            oldest = self._unloaded.pop(0)
            if all(version.label != oldest for version in self._versions.values()):
                self.metrics.forget_version(oldest)

    async def swap(self, open_policy: PolicyOpener, *, name: str = "") -> None:
        """Bring another version up, make it live at once, and drain those before.

        Until the new version has answered its warm-up, the old ones answer all questions; if the
        new one can't be loaded, nothing changes. The old ones answer the questions that they have.

        Args:
            open_policy: loads the new version, and unloads it again.
            name: the version's name; empty takes the start of its digest.

        Raises:
            PolicyServerError: if the new version can't be loaded or does not answer.
        """
        version = await self.add(open_policy, name=name)
        before = [label for label in self._versions if label != version.label]
        self.route({version.label: ALL_TRAFFIC})
        for label in before:
            await self.remove(label)

    async def aclose(self) -> None:
        """Answer the questions that wait, and unload the policy."""
        self._is_ready = None
        for name in [*self._versions]:
            await self.remove(name)
        self._traffic = None

    async def is_ready(self) -> bool:
        """Return whether a question would be answered now; asked at most once a second."""
        if self._traffic is None:
            return False
        if self._is_ready is None or (
            self._is_ready.done() and time.monotonic() >= self._ready_until
        ):
            self._is_ready = asyncio.create_task(self._ask_ready(self._traffic))
        return await asyncio.shield(self._is_ready)

    def is_lost(self) -> bool:
        """Return whether nothing but another process would answer questions of the traffic."""
        shares = () if self._traffic is None else self._traffic.shares
        return any(share.version.is_lost() for share in shares)

    async def _ask_ready(self, traffic: Traffic) -> bool:
        answers = [await share.version.scheduler.is_ready() for share in traffic.shares]
        self._ready_until = time.monotonic() + _READY_FOR_S
        return all(answers)

    def _split(self) -> Traffic:
        if self._traffic is None:
            if self.failure is not None:
                # The reason may name files of this machine; the log has it.
                raise NotReadyError(
                    f"the policy {self.name} can't be served; the server's log has the reason"
                )
            raise NotReadyError("the policy is not loaded yet; try again in a few seconds")
        return self._traffic

    def _named(self, name: str) -> PolicyVersion:
        if name not in self._versions:
            names = ", ".join(self._versions)
            raise DeploymentError(
                f"x-policy-version: {name!r} is not loaded; expected one of {names}"
            )
        return self._versions[name]

    def _free_label(self, digest: str) -> str:
        label = first = digest or _UNNAMED
        for number in itertools.count(2):
            if label not in self._versions:
                return label
            label = f"{first}-{number}"
        raise AssertionError

    def _check_fits(self, signature: PolicySignature, schema: ServerSchema) -> None:
        """Refuse a version whose observations or actions are not those of the loaded ones."""
        differing = self.schema.difference(schema)
        for version in self._versions.values():
            differing = differing or signature.difference(version.signature)
        if differing is not None:
            raise ModelError(
                f"{self.name}: the new version {differing} of today's; versions of one policy take "
                "the same observations and give the same actions: give it a name of its own under "
                "policies"
            )


def log_not_served(policy: str, version: str, error: PolicyServerError) -> None:
    """Log that a version could not be loaded.

    Args:
        policy: the policy's name.
        version: the version's.
        error: the reason.
    """
    extra = {"policy": policy, "version": version, "reason": error.message}
    logger.error("version_not_served", extra=extra)


async def _is_not_expected(_label: str, _digest: str) -> bool:
    """Return that a version won't be loaded: no other process deploys any."""
    return False
