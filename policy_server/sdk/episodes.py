"""The class `Episode` of each SDK: it numbers the steps of a session.

A request that is sent again after a lost connection is the same step only if it carries the same
number. `Episode` hands out the session's name and that number, so that a program can't forget or
miscount them. The generator knows nothing of it: each is written here by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from policy_server.sdk.languages import JVM_FOLDER, LanguageName

__all__ = ["add_episode"]


@dataclass(frozen=True)
class _Source:
    """A file with the class, and a line that makes it public.

    Attributes:
        file: its path in the SDK.
        text: its content.
        index: the path of the file that names what is public; empty where nothing has to.
        line: the line that is put at the end of that.
    """

    file: str
    text: str
    index: str = ""
    line: str = ""


_PYTHON = '''"""The steps of a session's episode."""

from policy_client.models.session import Session


class Episode:
    """Numbers the steps of a session, so that one that is sent again is not made twice.

    Not for several threads at once.
    """

    def __init__(self, session: Session) -> None:
        """Go on where the session is.

        :param session: the answer of begin_session, reset_session or get_session.
        """
        self.session_id = session.session_id
        self.steps = session.steps

    def step(self, ask, *arguments, **options):
        """Make a step and return its answer. A step that fails keeps its number.

        :param ask: a method such as SessionsApi.session_predict.
        :param arguments: the method's own behind session_id and x_step.
        """
        answer = ask(self.session_id, self.steps, *arguments, **options)
        self.steps += 1
        return answer
'''
_JAVA = """package com.policyserver.client;

import com.policyserver.client.model.Session;

/**
 * Numbers the steps of a session, so that one that is sent again is not made twice.
 *
 * <p>Not for several threads at once.
 */
public final class Episode {
  /**
   * Such as sessions.sessionPredict(sessionId, xStep, observation, null, null, null, null, null).
   */
  @FunctionalInterface
  public interface Ask<T> {
    T ask(String sessionId, Long xStep) throws ApiException;
  }

  private final String sessionId;
  private long steps;

  /**
   * Goes on where the session is.
   *
   * @param session the answer of beginSession, resetSession or getSession
   */
  public Episode(Session session) {
    this(session.getSessionId(), session.getSteps());
  }

  /**
   * Goes on in any session, such as a team's.
   *
   * @param sessionId the session's name
   * @param steps how many of its steps were answered
   */
  public Episode(String sessionId, long steps) {
    this.sessionId = sessionId;
    this.steps = steps;
  }

  /** Returns the session's name. */
  public String getSessionId() {
    return sessionId;
  }

  /** Returns how many steps were answered: the number of the next one. */
  public long getSteps() {
    return steps;
  }

  /** Makes a step and returns its answer. A step that fails keeps its number. */
  public <T> T step(Ask<T> ask) throws ApiException {
    T answer = ask.ask(sessionId, steps);
    steps++;
    return answer;
  }
}
"""
_SCALA = """package com.policyserver.client

import com.policyserver.client.model.Session

/** Numbers the steps of a session, so that one that is sent again is not made twice.
  *
  * Not for several threads at once.
  *
  * @param sessionId the session's name
  * @param answered how many of its steps were answered
  */
class Episode(val sessionId: String, private var answered: Long) {

  /** Goes on where the answer of beginSession, resetSession or getSession is. */
  def this(session: Session) = this(session.session_id, session.steps)

  /** How many steps were answered: the number of the next one. */
  def steps: Long = answered

  /** Makes a step and returns its answer. A step that fails keeps its number.
    *
    * @param ask sends a request such as sessionPredict(key)(sessionId, xStep, observation)
    */
  def step[E, A](ask: (String, Long) => Either[E, A]): Either[E, A] = {
    val answer = ask(sessionId, answered)
    if (answer.isRight) answered += 1
    answer
  }
}
"""
_R = """#' The steps of a session's episode
#'
#' @docType class
#' @title Episode
#' @description Numbers the steps of a session, so that one that is sent again is not made twice.
#' @format An \\code{R6Class} generator object
#' @field session_id The session's name.
#' @field steps How many steps were answered: the number of the next one.
#' @export
Episode <- R6::R6Class(
  "Episode",
  public = list(
    session_id = NULL,
    steps = NULL,

    #' @description
    #' Go on where the session is.
    #'
    #' @param session The answer of BeginSession, ResetSession or GetSession.
    initialize = function(session) {
      self$session_id <- session$session_id
      self$steps <- session$steps
    },

    #' @description
    #' Make a step and return its answer. A step that fails keeps its number.
    #'
    #' @param ask A method such as SessionsApi$SessionPredict.
    #' @param ... The method's own arguments behind session_id and x_step.
    step = function(ask, ...) {
      answer <- ask(self$session_id, self$steps, ...)
      self$steps <- self$steps + 1
      answer
    }
  )
)
"""
_TYPESCRIPT = """import type { Session } from './models/Session';

/** Numbers the steps of a session, so that one that is sent again is not made twice. */
export class Episode {
    readonly sessionId: string;
    private answered: number;
    private turn: Promise<unknown> = Promise.resolve();

    /**
     * Goes on where the session is.
     * @param session the answer of beginSession, resetSession or getSession
     */
    constructor(session: Pick<Session, 'session_id' | 'steps'>) {
        this.sessionId = session.session_id;
        this.answered = session.steps;
    }

    /** How many steps were answered: the number of the next one. */
    get steps(): number {
        return this.answered;
    }

    /**
     * Makes a step, after those that are asked already, and gives its answer. A step that fails
     * keeps its number.
     * @param ask a call such as sessions.sessionPredict({ ...step, observation })
     */
    step<T>(ask: (step: { sessionId: string; xStep: number }) => Promise<T>): Promise<T> {
        const answer = this.turn.then(async () => {
            const found = await ask({ sessionId: this.sessionId, xStep: this.answered });
            this.answered++;
            return found;
        });
        this.turn = answer.catch(() => undefined);
        return answer;
    }
}
"""
_CSHARP = """using System;
using PolicyClient.Model;

namespace PolicyClient.Client
{
    /// <summary>
    /// Numbers the steps of a session, so that one that is sent again is not made twice.
    /// Not for several threads at once.
    /// </summary>
    public sealed class Episode
    {
        /// <summary>Goes on where the session is.</summary>
        /// <param name="session">The answer of BeginSession, ResetSession or GetSession.</param>
        public Episode(Session session) : this(session.SessionId, session.Steps) { }

        /// <summary>Goes on in any session, such as a team's.</summary>
        /// <param name="sessionId">The session's name.</param>
        /// <param name="steps">How many of its steps were answered.</param>
        public Episode(string sessionId, long steps)
        {
            SessionId = sessionId;
            Steps = steps;
        }

        /// <summary>The session's name.</summary>
        public string SessionId { get; }

        /// <summary>How many steps were answered: the number of the next one.</summary>
        public long Steps { get; private set; }

        /// <summary>
        /// Makes a step and returns its answer. A step that fails keeps its number.
        /// </summary>
        /// <param name="ask">A call such as SessionPredict(sessionId, xStep, observation).</param>
        public T Step<T>(Func<string, long, T> ask)
        {
            var answer = ask(SessionId, Steps);
            Steps++;
            return answer;
        }

        /// <summary>Makes a step with a method that ends in Async.</summary>
        /// <param name="ask">Such as SessionPredictAsync(sessionId, xStep, observation).</param>
        public async System.Threading.Tasks.Task<T> StepAsync<T>(
            Func<string, long, System.Threading.Tasks.Task<T>> ask)
        {
            var answer = await ask(SessionId, Steps).ConfigureAwait(false);
            Steps++;
            return answer;
        }
    }
}
"""
_GO = """package policyclient

import "net/http"

// Episode numbers the steps of a session, so that one that is sent again is not made twice. It is
// not for several goroutines at once.
type Episode struct {
\tsessionId string
\tsteps     int64
}

// NewEpisode goes on where the session is: the answer of BeginSession, ResetSession or GetSession.
func NewEpisode(session *Session) *Episode {
\treturn ResumeEpisode(session.SessionId, session.Steps)
}

// ResumeEpisode goes on in any session, such as a team's, of which that many steps were answered.
func ResumeEpisode(sessionId string, steps int64) *Episode {
\treturn &Episode{sessionId, steps}
}

// SessionId returns the session's name.
func (e *Episode) SessionId() string { return e.sessionId }

// Steps returns how many steps were answered: the number of the next one.
func (e *Episode) Steps() int64 { return e.steps }

// Step makes a step by a call such as SessionPredict(ctx, sessionId).XStep(xStep), and returns its
// answer. A step that fails keeps its number.
func Step[T any](
\te *Episode, ask func(sessionId string, xStep int64) (T, *http.Response, error),
) (T, *http.Response, error) {
\tanswer, response, err := ask(e.sessionId, e.steps)
\tif err == nil {
\t\te.steps++
\t}
\treturn answer, response, err
}
"""
_KOTLIN = """package com.policyserver.client

import com.policyserver.client.infrastructure.ApiResponse
import com.policyserver.client.infrastructure.ResponseType
import com.policyserver.client.models.Session

/**
 * Numbers the steps of a session, so that one that is sent again is not made twice.
 *
 * Not for several threads at once.
 *
 * @param sessionId the session's name
 * @param steps how many of its steps were answered
 */
class Episode(val sessionId: String, steps: Long) {
    /** Goes on where the answer of beginSession, resetSession or getSession is. */
    constructor(session: Session) : this(session.sessionId, session.steps)

    /** How many steps were answered: the number of the next one. */
    var steps: Long = steps
        private set

    /**
     * Makes a step and returns its answer. A step that fails keeps its number.
     *
     * @param ask a call such as sessions.sessionPredict(sessionId, xStep, observation)
     */
    fun <T> step(ask: (sessionId: String, xStep: Long) -> T): T {
        val answer = ask(sessionId, steps)
        if (answer !is ApiResponse<*> || answer.responseType == ResponseType.Success) steps++
        return answer
    }
}
"""
_SOURCES: Mapping[LanguageName, _Source] = {
    "python": _Source(
        "policy_client/episode.py",
        _PYTHON,
        "policy_client/__init__.py",
        "from policy_client.episode import Episode as Episode",
    ),
    "java": _Source(f"src/main/java/{JVM_FOLDER}/Episode.java", _JAVA),
    "scala": _Source(f"src/main/scala/{JVM_FOLDER}/Episode.scala", _SCALA),
    "r": _Source("R/episode.R", _R, "NAMESPACE", "export(Episode)"),
    "typescript": _Source(
        "src/episode.ts", _TYPESCRIPT, "src/index.ts", "export * from './episode';"
    ),
    "csharp": _Source("src/PolicyClient/Client/Episode.cs", _CSHARP),
    "go": _Source("episode.go", _GO),
    "kotlin": _Source(f"src/main/kotlin/{JVM_FOLDER}/Episode.kt", _KOTLIN),
}


def add_episode(
    files: Mapping[PurePosixPath, bytes], language: LanguageName
) -> dict[PurePosixPath, bytes]:
    """Return an SDK's files with the class `Episode`.

    Args:
        files: the generated files by their path in the SDK.
        language: of the SDK.
    """
    source = _SOURCES[language]
    added = {PurePosixPath(source.file): source.text.encode()}
    if source.index:
        index = PurePosixPath(source.index)
        added[index] = files[index].rstrip() + f"\n{source.line}\n".encode()
    return {**files, **added}
