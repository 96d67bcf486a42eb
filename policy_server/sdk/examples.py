"""The words of each README: how the SDK is installed, and a program that asks for one action.

`policy_server.sdk.readme` replaces each `%name%`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EXAMPLES", "Example"]


@dataclass(frozen=True)
class Example:
    """One language's part of its README.

    Attributes:
        install: how to install the SDK, in Markdown.
        program: asks for one action.
        fence: the program's language in Markdown.
        error: how a method reports an error of the server, in Markdown.
        intro: a sentence about the program, with a space behind it.
    """

    install: str
    program: str
    fence: str
    error: str
    intro: str = "This asks for one action. "


_PYTHON = """
import os

import urllib3
from policy_client import ApiClient, Configuration, %model%, PolicyApi

configuration = Configuration(
    host=os.environ.get("POLICY_SERVER_URL", "%url%"),
    api_key={"accessToken": os.environ["POLICY_SERVER_API_KEY"]},
    retries=urllib3.Retry(3, allowed_methods=None, backoff_factor=0.1, raise_on_status=False),
)
observation = %model%(
%properties%
)
with ApiClient(configuration) as client:
    answer = PolicyApi(client).predict%raw%(observation, _request_timeout=10)
print(answer.actions, answer.probability)
"""
_JAVA = """
import com.policyserver.client.ApiClient;
import com.policyserver.client.api.PolicyApi;
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
        Prediction answer = new PolicyApi(client).predict%Raw%(observation, null);
        System.out.println(answer.getActions() + " " + answer.getProbability());
    }
}
"""
_SCALA = """
import com.policyserver.client.api.PolicyApi
import com.policyserver.client.model.%model%
import scala.concurrent.duration._
import sttp.client4.{BackendOptions, DefaultSyncBackend}

object Example extends App {
  System.setProperty("jdk.httpclient.enableAllMethodRetry", "true")
  val backend = DefaultSyncBackend(BackendOptions.connectionTimeout(5.seconds))
  val policy = PolicyApi(sys.env.getOrElse("POLICY_SERVER_URL", "%url%"))
  val observation = %model%(
%properties%
  )
  val request = policy.predict%Raw%(sys.env("POLICY_SERVER_API_KEY"))(observation)
  request.readTimeout(10.seconds).send(backend).body match {
    case Right(answer) => println(s"${answer.actions} ${answer.probability}")
    case Left(error) => sys.error(error.getMessage)
  }
}
"""
_R = """
library(policyclient)

policy <- PolicyApi$new(ApiClient$new(
  base_path = Sys.getenv("POLICY_SERVER_URL", "%url%"),
  api_keys = c("access-token" = Sys.getenv("POLICY_SERVER_API_KEY")),
  timeout = 10,
  max_retry_attempts = 3
))
observation <- %model%$new(
%properties%
)
answer <- policy$Predict%Raw%(observation)
print(unlist(answer$actions))
print(answer$probability)
"""
_TYPESCRIPT = """
import { Configuration, PolicyApi } from "policy-client";

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

const policy = new PolicyApi(new Configuration({
    basePath: process.env.POLICY_SERVER_URL ?? "%url%",
    apiKey: process.env.POLICY_SERVER_API_KEY,
    fetchApi: fetchAgain,
}));
const observation = {
%properties%
};
const answer = await policy.predict%Raw%({ %argument%: observation });
console.log(answer.actions, answer.probability);
"""
_CSHARP = """
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
    BasePath = Environment.GetEnvironmentVariable("POLICY_SERVER_URL") ?? "%url%",
    Timeout = TimeSpan.FromSeconds(10)
};
configuration.ApiKey["access-token"] = Environment.GetEnvironmentVariable("POLICY_SERVER_API_KEY");
using var http = new HttpClient(new Retrying());
var policy = new PolicyApi(http, configuration);
var observation = new %model%(
%properties%
);
var answer = policy.Predict%Raw%(observation);
Console.WriteLine($"{string.Join(", ", answer.Actions)} {answer.Probability}");

class Retrying : DelegatingHandler
{
    public Retrying() : base(new HttpClientHandler()) { }

    protected override async Task<HttpResponseMessage> SendAsync(
        HttpRequestMessage request, CancellationToken cancellation)
    {
        for (var attempt = 1; ; attempt++)
        {
            try
            {
                return await base.SendAsync(request, cancellation);
            }
            catch (HttpRequestException) when (attempt < 3)
            {
                await Task.Delay(attempt * 100, cancellation);
            }
        }
    }
}
"""
_GO = """
package main

import (
\t"context"
\t"fmt"
\t"net/http"
\t"os"
\t"time"

\t"policyclient"
)

type retrying struct{}

func (retrying) RoundTrip(request *http.Request) (*http.Response, error) {
\tfor attempt := 1; ; attempt++ {
\t\tagain := request.Clone(request.Context())
\t\tif request.GetBody != nil {
\t\t\tagain.Body, _ = request.GetBody()
\t\t}
\t\tanswer, err := http.DefaultTransport.RoundTrip(again)
\t\tif err == nil || attempt == 3 || request.Context().Err() != nil {
\t\t\treturn answer, err
\t\t}
\t\ttime.Sleep(time.Duration(attempt) * 100 * time.Millisecond)
\t}
}

func main() {
\tconfiguration := policyclient.NewConfiguration()
\tif url, found := os.LookupEnv("POLICY_SERVER_URL"); found {
\t\tconfiguration.Servers[0].URL = url
\t}
\tconfiguration.HTTPClient = &http.Client{Transport: retrying{}, Timeout: 10 * time.Second}
\tconfiguration.AddDefaultHeader("access-token", os.Getenv("POLICY_SERVER_API_KEY"))
\tclient := policyclient.NewAPIClient(configuration)
\tobservation := policyclient.%model%{
%properties%
\t}
\trequest := client.PolicyAPI.Predict%Raw%(context.Background())
\tanswer, _, err := request.%model%(observation).Execute()
\tif err != nil {
\t\tfmt.Fprintln(os.Stderr, err)
\t\tos.Exit(1)
\t}
\tfmt.Println(answer.Actions, answer.GetProbability())
}
"""
_KOTLIN = """
import com.policyserver.client.apis.PolicyApi
import com.policyserver.client.infrastructure.ApiClient
import com.policyserver.client.models.%model%
import java.time.Duration
import okhttp3.OkHttpClient

fun main() {
    ApiClient.apiKey["access-token"] = System.getenv("POLICY_SERVER_API_KEY")
    val http = OkHttpClient.Builder()
        .callTimeout(Duration.ofSeconds(10))
        .retryOnConnectionFailure(true)
        .build()
    val policy = PolicyApi(System.getenv("POLICY_SERVER_URL") ?: "%url%", http)
    val observation = %model%(
%properties%
    )
    val answer = policy.predict%Raw%(observation)
    println("${answer.actions} ${answer.probability}")
}
"""


def _shell(*lines: str) -> str:
    return "\n".join(["```bash", *lines, "```"])


EXAMPLES = {
    "python": Example(
        _shell("pip install ."), _PYTHON, "python", "raises `ApiException` with `status` and `body`"
    ),
    "java": Example(
        _shell("mvn install")
        + "\n\nIt runs on Java 11 and later. What it needs stands in pom.xml: Jackson, and Jakarta "
        "Annotations.",
        _JAVA,
        "java",
        "throws `ApiException` with `getCode()` and `getResponseBody()`",
        "This is `Example.java`. ",
    ),
    "scala": Example(
        _shell("sbt publishLocal") + "\n\nThen, in your build.sbt:\n\n```scala\n"
        'libraryDependencies += "com.policyserver" %% "policy-client" % "%version%"\n```',
        _SCALA,
        "scala",
        "gives a `Left`, whose message has the status and the body",
    ),
    "r": Example(
        _shell(
            'Rscript -e \'install.packages(c("base64enc", "httr2", "jsonlite", "R6", "stringr"))\'',
            "R CMD INSTALL .",
        ),
        _R,
        "r",
        "stops; `tryCatch` gets the status and the body as the message",
    ),
    "typescript": Example(
        _shell("npm install")
        + "\n\nThat compiles it, too. Then, in your project: `npm install` and this folder's path.",
        _TYPESCRIPT,
        "typescript",
        "throws `ResponseError`; its `response` has `status` and `json()`",
        "This is `example.mjs`, for Node 18 and later. ",
    ),
    "csharp": Example(
        "Add a reference to your project, with the path of this folder:\n\n"
        + _shell("dotnet add reference csharp/src/PolicyClient/PolicyClient.csproj"),
        _CSHARP,
        "csharp",
        "throws `ApiException` with `ErrorCode` and `ErrorContent`",
    ),
    "go": Example(
        "In your module, with the path of this folder:\n\n"
        + _shell("go mod edit -require=policyclient@v0.0.0 -replace=policyclient=../go"),
        _GO,
        "go",
        "returns an error; as a `*policyclient.GenericOpenAPIError` it has `Body()`",
    ),
    "kotlin": Example(
        _shell("gradle publishToMavenLocal") + "\n\nWhat it needs stands in build.gradle.",
        _KOTLIN,
        "kotlin",
        "throws `ClientException` or `ServerException` with `statusCode` and `response`",
    ),
}
