"""The versions of a policy that are to be served, and every change of them, as values.

One change leads from one sound deployment to another, or is refused in one line; `Deployer` carries
it out. For example:

    before = Deployment.begin([DeployedVersion("v1", "door.zip", 100.0)])
    trial = before.deployed(DeployedVersion("v2", "door_2.zip", 10.0))
    after = trial.promoted("v2")      # v2 answers all, v1 stays loaded
    again = after.rolled_back()       # v1 answers all
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from policy_server.errors import DeploymentError
from policy_server.serving.traffic import ALL_TRAFFIC

__all__ = ["DeployedVersion", "Deployment", "Evidence"]


@dataclass(frozen=True)
class DeployedVersion:
    """A version that is loaded.

    Attributes:
        name: the version's name.
        model: the path of its zip or folder, or its address; None for the policy that lies in the
            server's folder.
        percent: its share of the questions, in per cent.
        is_shadow: whether it gets copies of the questions, and answers nobody.
        digest: the start of the digest of its files; empty before it was loaded.
    """

    name: str
    model: str | None
    percent: float = 0.0
    is_shadow: bool = False
    digest: str = ""


@dataclass(frozen=True)
class Evidence:
    """The condition that a version has to meet before it is promoted.

    Attributes:
        version: the version's name.
        after: how many questions have to be compared first.
        max_disagreement: the largest share of them whose deterministic action is another one.
    """

    version: str
    after: int
    max_disagreement: float


@dataclass(frozen=True)
class Deployment:
    """The versions of one policy, and who answers what.

    Attributes:
        versions: those that are loaded; their shares are 100 per cent together.
        live: the name of the version that the policy is known by.
        former: the name of the version that was live before, which stays loaded for a rollback;
            None for none.
        waiting_for: the evidence that a promotion waits for; None for none.
        reason: why the last change was made by the server itself; empty otherwise.
        serial: how many changes there have been.
    """

    versions: tuple[DeployedVersion, ...]
    live: str
    former: str | None = None
    waiting_for: Evidence | None = None
    reason: str = ""
    serial: int = 0

    @classmethod
    def begin(cls, versions: Sequence[DeployedVersion]) -> Deployment:
        """Return the deployment that schema.yaml describes.

        Args:
            versions: those that are loaded; at least one has a share.
        """
        live = max(versions, key=lambda version: version.percent)
        return cls(tuple(versions), live.name)

    def __iter__(self) -> Iterator[DeployedVersion]:
        """Iterate over the versions."""
        return iter(self.versions)

    @property
    def names(self) -> frozenset[str]:
        """Return the names of the versions."""
        return frozenset(version.name for version in self)

    @property
    def percents(self) -> Mapping[str, float]:
        """Return the share of each version that answers, by name."""
        return {version.name: version.percent for version in self if version.percent > 0.0}

    @property
    def shadows(self) -> frozenset[str]:
        """Return the names of the versions that get copies: shadows, and one on trial."""
        trial = {self.waiting_for.version} if self.waiting_for is not None else set()
        return frozenset({version.name for version in self if version.is_shadow} | trial)

    @property
    def candidates(self) -> Sequence[str]:
        """Return the names of the versions that may be promoted: neither live nor former."""
        return [item.name for item in self if item.name not in (self.live, self.former)]

    def deployed(self, version: DeployedVersion) -> Deployment:
        """Return the deployment with another version.

        With a share of 100 per cent it is live at once, and the live version becomes the former
        one; with a smaller share the others keep theirs in proportion.

        Args:
            version: the new version; its name is new too.

        Raises:
            DeploymentError: if the version can't be deployed.
        """
        if any(item.name == version.name for item in self):
            raise DeploymentError(
                f"version {version.name} is deployed already; give the new one another name with "
                "--version, or undeploy that one first"
            )
        if version.percent >= ALL_TRAFFIC:
            return _made_live(self._with((*self.versions, version), reason=""), version.name)
        rest = (ALL_TRAFFIC - version.percent) / ALL_TRAFFIC
        others = [replace(item, percent=item.percent * rest) for item in self]
        return self._with((*others, version), reason="")

    def is_followed_by(self, later: Deployment) -> bool:
        """Return whether nothing was taken away from this deployment up to a later one.

        Versions may have come to it, and have a share; whoever has promoted, rolled back or
        undeployed one knew nothing of a version that was still being loaded.

        Args:
            later: the later deployment.
        """
        known = (self.live, self.former)
        return known == (later.live, later.former) and self.names <= later.names

    def identified(self, digests: Mapping[str, str]) -> Deployment:
        """Return the same deployment, whose versions have the digests of what was loaded.

        Args:
            digests: the start of the digest of each loaded version's files, by its name.
        """
        known = tuple(replace(item, digest=digests.get(item.name, item.digest)) for item in self)
        return replace(self, versions=known)

    def promoted(self, name: str | None = None, *, reason: str = "") -> Deployment:
        """Return the deployment in which a version answers all questions.

        The live version stays loaded as the former one; the one that was former, and other
        candidates with a share, are undeployed.

        Args:
            name: the version's name; None for the only candidate.
            reason: why the server does it by itself; empty for a person's wish.

        Raises:
            DeploymentError: if there is no such version, or none or several to choose from.
        """
        chosen = self._candidate(name, "promote")
        if chosen == self.live:
            raise DeploymentError(f"version {chosen} is live already")
        return _made_live(self._with(self.versions, reason=reason), chosen)

    def awaiting(self, evidence: Evidence) -> Deployment:
        """Return the deployment in which a promotion waits for evidence.

        Args:
            evidence: what the version has to show; its `version` may be empty for the only
                candidate.

        Raises:
            DeploymentError: if there is no such version, or none or several to choose from.
        """
        chosen = self._candidate(evidence.version or None, "promote")
        if chosen == self.live:
            raise DeploymentError(f"version {chosen} is live already")
        return replace(
            self._with(self.versions, reason=""), waiting_for=replace(evidence, version=chosen)
        )

    def rolled_back(self, *, reason: str = "") -> Deployment:
        """Return the deployment without its candidates; without any, with the former version live.

        Args:
            reason: why the server does it by itself; empty for a person's wish.

        Raises:
            DeploymentError: if there is nothing to go back to.
        """
        answering = [item.name for item in self if item.percent > 0.0 and item.name != self.live]
        trial = [] if self.waiting_for is None else [self.waiting_for.version]
        if answering or trial:
            # The former version may be on trial; it stays for the next rollback.
            gone = {*answering, *trial} - {self.former}
            kept = [
                replace(item, percent=ALL_TRAFFIC if item.name == self.live else 0.0)
                for item in self
                if item.name not in gone
            ]
            return replace(self._with(kept, reason=reason), waiting_for=None)
        if self.former is None:
            live = f"version {self.live}" if self.versions else "no version"
            raise DeploymentError(f"{live} is live, and none before it is loaded; deploy one")
        return _made_live(self._with(self.versions, reason=reason), self.former)

    def undeployed(self, name: str, *, reason: str = "") -> Deployment:
        """Return the deployment without a version; its share goes to the others in proportion.

        Args:
            name: the version's name; not that of the live one.
            reason: why the server does it by itself; empty for a person's wish.

        Raises:
            DeploymentError: if there is no such version, or it is live.
        """
        self._known(name)
        if name == self.live:
            raise DeploymentError(
                f"version {name} is live; promote another one, or roll back, before undeploying it"
            )
        kept = [item for item in self if item.name != name]
        whole = sum(item.percent for item in kept)
        kept = [replace(item, percent=item.percent * ALL_TRAFFIC / whole) for item in kept]
        found = self._with(kept, reason=reason)
        return replace(found, former=None) if self.former == name else found

    def _with(self, versions: Sequence[DeployedVersion], *, reason: str) -> Deployment:
        names = {item.name for item in versions}
        waiting = self.waiting_for
        return replace(
            self,
            versions=tuple(versions),
            waiting_for=waiting if waiting is not None and waiting.version in names else None,
            reason=reason,
            serial=self.serial + 1,
        )

    def _candidate(self, name: str | None, verb: str) -> str:
        if name is not None:
            return self._known(name)
        if len(self.candidates) != 1:
            names = ", ".join(self.candidates) or "none"
            raise DeploymentError(
                f"there are {len(self.candidates)} versions to {verb} ({names}); name one with "
                "--version"
            )
        return self.candidates[0]

    def _known(self, name: str) -> str:
        if all(item.name != name for item in self):
            names = ", ".join(item.name for item in self) or "none, since none could be loaded"
            raise DeploymentError(f"there is no version {name}; expected one of {names}")
        return name


def _made_live(deployment: Deployment, name: str) -> Deployment:
    """Return the deployment in which a version answers all, and the live one becomes the former."""
    kept = {name, deployment.live}
    versions = [
        replace(
            item,
            percent=ALL_TRAFFIC if item.name == name else 0.0,
            is_shadow=item.is_shadow and item.name not in kept,
        )
        for item in deployment
        if item.name in kept or item.is_shadow
    ]
    return replace(
        deployment,
        versions=tuple(versions),
        live=name,
        former=deployment.live,
        waiting_for=None,
    )
