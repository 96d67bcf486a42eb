"""The program in each README: one action of a policy, or three of a policy with a memory.

`policy_server.sdk.readme` replaces each `%name%`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from policy_server.sdk.languages import LanguageName

__all__ = ["PROGRAMS", "Asking", "Program"]


@dataclass(frozen=True)
class Asking:
    """The part of a program that asks the policy.

    Attributes:
        calls: stand in place of the program's `%calls%`.
        imports: what they import, in place of the program's `%imports%`.
    """

    calls: str
    imports: str = ""


@dataclass(frozen=True)
class Program:
    """A program that connects to the server, and builds an observation.

    Attributes:
        text: the program around its calls.
        predict: asks for one action.
        episode: asks for the actions of an episode, in a session.
    """

    text: str
    predict: Asking
    episode: Asking


_PYTHON = Program(
    """\
import os

import urllib3
%imports%

configuration = Configuration(
    host=os.environ.get("POLICY_SERVER_URL", "%url%"),
    api_key={"accessToken": os.environ["POLICY_SERVER_API_KEY"]},
    retries=urllib3.Retry(
        3,
        allowed_methods=None,
        status_forcelist=[503],
        respect_retry_after_header=False,
        backoff_factor=0.5,
        raise_on_status=False,
    ),
)
observation = %model%(
%properties%
)
with ApiClient(configuration) as client:
%calls%""",
    Asking(
        """\
    answer = PolicyApi(client).predict%raw%(observation, _request_timeout=10)
    print(answer.actions, answer.probability)""",
        "from policy_client import ApiClient, Configuration, %model%, PolicyApi",
    ),
    Asking(
        """\
    sessions = SessionsApi(client)
    episode = Episode(sessions.begin_session(_request_timeout=10))
    for _ in range(3):
        answer = episode.step(sessions.session_predict%raw%, observation, _request_timeout=10)
        print(answer.actions, answer.probability)
    sessions.end_session(episode.session_id, _request_timeout=10)""",
        "from policy_client import ApiClient, Configuration, Episode, %model%, SessionsApi",
    ),
)
_JAVA = Program(
    """\
%imports%
import com.policyserver.client.model.%model%;
import com.policyserver.client.model.Prediction;
import java.time.Duration;
import java.util.List;

public class Example {
    public static void main(String[] arguments) throws Exception {
        System.setProperty("jdk.httpclient.enableAllMethodRetry", "true");
        String key = System.getenv("POLICY_SERVER_API_KEY");
        ApiClient client = new ApiClient();
        client.updateBaseUri(System.getenv().getOrDefault("POLICY_SERVER_URL", "%url%"));
        client.setConnectTimeout(Duration.ofSeconds(5));
        client.setReadTimeout(Duration.ofSeconds(10));
        client.setRequestInterceptor(request -> request.header("access-token", key));
        %model% observation = new %model%()
%properties%;
%calls%
    }
}""",
    Asking(
        """\
        Prediction answer = new PolicyApi(client).predict%Raw%(observation, null, null, null);
        System.out.println(answer.getActions() + " " + answer.getProbability());""",
        """\
import com.policyserver.client.ApiClient;
import com.policyserver.client.api.PolicyApi;""",
    ),
    Asking(
        """\
        SessionsApi sessions = new SessionsApi(client);
        Episode episode = new Episode(sessions.beginSession(null));
        for (int i = 0; i < 3; i++) {
            Prediction answer = episode.step((sessionId, xStep) ->
                    sessions.sessionPredict%Raw%(
                            sessionId, xStep, observation, null, null, null, null, null));
            System.out.println(answer.getActions() + " " + answer.getProbability());
        }
        sessions.endSession(episode.getSessionId());""",
        """\
import com.policyserver.client.ApiClient;
import com.policyserver.client.Episode;
import com.policyserver.client.api.SessionsApi;""",
    ),
)
_SCALA = Program(
    """\
%imports%
import com.policyserver.client.model.%model%
import scala.concurrent.duration._
import sttp.client4.{BackendOptions, DefaultSyncBackend, Request}

object Example extends App {
  System.setProperty("jdk.httpclient.enableAllMethodRetry", "true")
  val backend = DefaultSyncBackend(BackendOptions.connectionTimeout(5.seconds))
  val url = sys.env.getOrElse("POLICY_SERVER_URL", "%url%")
  val key = sys.env("POLICY_SERVER_API_KEY")
  val observation = %model%(
%properties%
  )

  def send[A](request: Request[A]): A = request.readTimeout(10.seconds).send(backend).body
  def get[A](answer: Either[Exception, A]): A = answer.fold(throw _, identity)

%calls%
}""",
    Asking(
        """\
  val answer = get(send(PolicyApi(url).predict%Raw%(key)(observation)))
  println(s"${answer.actions} ${answer.probability}")""",
        "import com.policyserver.client.api.PolicyApi",
    ),
    Asking(
        """\
  val sessions = SessionsApi(url)
  val episode = new Episode(get(send(sessions.beginSession(key)())))
  for (_ <- 1 to 3) {
    val answer = get(episode.step((sessionId, xStep) =>
      send(sessions.sessionPredict%Raw%(key)(sessionId, xStep, observation))))
    println(s"${answer.actions} ${answer.probability}")
  }
  get(send(sessions.endSession(key)(episode.sessionId)))""",
        """\
import com.policyserver.client.Episode
import com.policyserver.client.api.SessionsApi""",
    ),
)
_R = Program(
    """\
library(policyclient)

client <- ApiClient$new(
  base_path = Sys.getenv("POLICY_SERVER_URL", "%url%"),
  api_keys = c("access-token" = Sys.getenv("POLICY_SERVER_API_KEY")),
  timeout = 10,
  max_retry_attempts = 3
)
observation <- %model%$new(
%properties%
)
%calls%""",
    Asking(
        """\
answer <- PolicyApi$new(client)$Predict%Raw%(observation)
print(unlist(answer$actions))
print(answer$probability)""",
    ),
    Asking(
        """\
sessions <- SessionsApi$new(client)
episode <- Episode$new(sessions$BeginSession())
for (i in 1:3) {
  answer <- episode$step(sessions$SessionPredict%Raw%, observation)
  print(unlist(answer$actions))
  print(answer$probability)
}
invisible(sessions$EndSession(episode$session_id))""",
    ),
)
_TYPESCRIPT = Program(
    """\
%imports%

async function fetchAgain(url, options) {
    for (let attempt = 1; ; attempt++) {
        try {
            return await fetch(url, { ...options, signal: AbortSignal.timeout(10_000) });
        } catch (error) {
            if (attempt === 3) throw error;
            await new Promise((resolve) => setTimeout(resolve, attempt * 100));
        }
    }
}

const configuration = new Configuration({
    basePath: process.env.POLICY_SERVER_URL ?? "%url%",
    apiKey: process.env.POLICY_SERVER_API_KEY,
    fetchApi: fetchAgain,
});
const observation = {
%properties%
};
%calls%""",
    Asking(
        """\
const answer = await new PolicyApi(configuration).predict%Raw%({ %argument%: observation });
console.log(answer.actions, answer.probability);""",
        'import { Configuration, PolicyApi } from "policy-client";',
    ),
    Asking(
        """\
const sessions = new SessionsApi(configuration);
const episode = new Episode(await sessions.beginSession());
for (let i = 0; i < 3; i++) {
    const answer = await episode.step((step) =>
        sessions.sessionPredict%Raw%({ ...step, %argument%: observation }));
    console.log(answer.actions, answer.probability);
}
await sessions.endSession({ sessionId: episode.sessionId });""",
        'import { Configuration, Episode, SessionsApi } from "policy-client";',
    ),
)
_CSHARP = Program(
    """\
using System;
using System.Collections.Generic;
using System.Net.Http;
using System.Threading;
using System.Threading.Tasks;
using PolicyClient.Api;
using PolicyClient.Client;
using PolicyClient.Model;

var configuration = new Configuration
{
    BasePath = Environment.GetEnvironmentVariable("POLICY_SERVER_URL") ?? "%url%"
};
configuration.ApiKey["access-token"] = Environment.GetEnvironmentVariable("POLICY_SERVER_API_KEY");
using var http = new HttpClient(new Retrying());
var observation = new %model%(
%properties%
);
%calls%

class Retrying : DelegatingHandler
{
    public Retrying() : base(new HttpClientHandler()) { }

    protected override async Task<HttpResponseMessage> SendAsync(
        HttpRequestMessage request, CancellationToken cancellation)
    {
        for (var attempt = 1; ; attempt++)
        {
            using var time = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
            time.CancelAfter(TimeSpan.FromSeconds(10));
            try
            {
                return await base.SendAsync(request, time.Token);
            }
            catch (Exception) when (attempt < 3 && !cancellation.IsCancellationRequested)
            {
                await Task.Delay(attempt * 100, cancellation);
            }
        }
    }
}""",
    Asking(
        """\
var answer = new PolicyApi(http, configuration).Predict%Raw%(observation);
Console.WriteLine($"{string.Join(", ", answer.Actions)} {answer.Probability}");""",
    ),
    Asking(
        """\
var sessions = new SessionsApi(http, configuration);
var episode = new Episode(sessions.BeginSession());
for (var i = 0; i < 3; i++)
{
    var answer = episode.Step((sessionId, xStep) =>
        sessions.SessionPredict%Raw%(sessionId, xStep, observation));
    Console.WriteLine($"{string.Join(", ", answer.Actions)} {answer.Probability}");
}
sessions.EndSession(episode.SessionId);""",
    ),
)
_GO = Program(
    """\
package main

import (
\t"bytes"
\t"context"
\t"fmt"
\t"io"
\t"net/http"
\t"os"
\t"time"

\t"policyclient"
)

type retrying struct{}

func (retrying) RoundTrip(request *http.Request) (*http.Response, error) {
\tfor attempt := 1; ; attempt++ {
\t\tanswer, err := ask(request)
\t\tif err == nil || attempt == 3 || request.Context().Err() != nil {
\t\t\treturn answer, err
\t\t}
\t\ttime.Sleep(time.Duration(attempt) * 100 * time.Millisecond)
\t}
}

func ask(request *http.Request) (*http.Response, error) {
\tctx, cancel := context.WithTimeout(request.Context(), 10*time.Second)
\tdefer cancel()
\tagain := request.Clone(ctx)
\tif request.GetBody != nil {
\t\tagain.Body, _ = request.GetBody()
\t}
\tanswer, err := http.DefaultTransport.RoundTrip(again)
\tif err != nil {
\t\treturn nil, err
\t}
\tdefer answer.Body.Close()
\tbody, err := io.ReadAll(answer.Body)
\tif err != nil {
\t\treturn nil, err
\t}
\tanswer.Body = io.NopCloser(bytes.NewReader(body))
\treturn answer, nil
}

func check(err error) {
\tif err != nil {
\t\tfmt.Fprintln(os.Stderr, err)
\t\tos.Exit(1)
\t}
}

func main() {
\tconfiguration := policyclient.NewConfiguration()
\tif url, found := os.LookupEnv("POLICY_SERVER_URL"); found {
\t\tconfiguration.Servers[0].URL = url
\t}
\tconfiguration.HTTPClient = &http.Client{Transport: retrying{}}
\tconfiguration.AddDefaultHeader("access-token", os.Getenv("POLICY_SERVER_API_KEY"))
\tclient := policyclient.NewAPIClient(configuration)
\tctx := context.Background()
\tobservation := policyclient.%model%{
%properties%
\t}
%calls%
}""",
    Asking(
        """\
\tanswer, _, err := client.PolicyAPI.Predict%Raw%(ctx).%model%(observation).Execute()
\tcheck(err)
\tfmt.Println(answer.Actions, answer.GetProbability())""",
    ),
    Asking(
        """\
\tsession, _, err := client.SessionsAPI.BeginSession(ctx).Execute()
\tcheck(err)
\tepisode := policyclient.NewEpisode(session)
\tpredict := func(id string, step int64) (*policyclient.Prediction, *http.Response, error) {
\t\trequest := client.SessionsAPI.SessionPredict%Raw%(ctx, id).XStep(step)
\t\treturn request.%model%(observation).Execute()
\t}
\tfor i := 0; i < 3; i++ {
\t\tanswer, _, err := policyclient.Step(episode, predict)
\t\tcheck(err)
\t\tfmt.Println(answer.Actions, answer.GetProbability())
\t}
\t_, err = client.SessionsAPI.EndSession(ctx, episode.SessionId()).Execute()
\tcheck(err)""",
    ),
)
_KOTLIN = Program(
    """\
%imports%
import com.policyserver.client.infrastructure.ApiClient
import com.policyserver.client.models.%model%
import java.time.Duration
import okhttp3.OkHttpClient

fun main() {
    ApiClient.apiKey["access-token"] = System.getenv("POLICY_SERVER_API_KEY")
    val http = OkHttpClient.Builder()
        .readTimeout(Duration.ofSeconds(10))
        .retryOnConnectionFailure(true)
        .build()
    val url = System.getenv("POLICY_SERVER_URL") ?: "%url%"
    val observation = %model%(
%properties%
    )
%calls%
}""",
    Asking(
        """\
    val answer = PolicyApi(url, http).predict%Raw%(observation)
    println("${answer.actions} ${answer.probability}")""",
        "import com.policyserver.client.apis.PolicyApi",
    ),
    Asking(
        """\
    val sessions = SessionsApi(url, http)
    val episode = Episode(sessions.beginSession())
    repeat(3) {
        val answer = episode.step { sessionId, xStep ->
            sessions.sessionPredict%Raw%(sessionId, xStep, observation)
        }
        println("${answer.actions} ${answer.probability}")
    }
    sessions.endSession(episode.sessionId)""",
        """\
import com.policyserver.client.Episode
import com.policyserver.client.apis.SessionsApi""",
    ),
)
PROGRAMS: Mapping[LanguageName, Program] = {
    "python": _PYTHON,
    "java": _JAVA,
    "scala": _SCALA,
    "r": _R,
    "typescript": _TYPESCRIPT,
    "csharp": _CSHARP,
    "go": _GO,
    "kotlin": _KOTLIN,
}
