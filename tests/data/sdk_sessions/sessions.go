// Each call of a session, and of a state token; prints what came of it.
package main

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"os"
	"reflect"
	"strconv"

	"policyclient"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func count(answer *policyclient.Prediction) int {
	return int(math.Round(answer.Actions[1].([]interface{})[0].(float64)))
}

func main() {
	configuration := policyclient.NewConfiguration()
	configuration.Servers[0].URL = os.Getenv("POLICY_SERVER_URL")
	configuration.AddDefaultHeader("access-token", os.Getenv("POLICY_SERVER_API_KEY"))
	client := policyclient.NewAPIClient(configuration)
	sessions, ctx := client.SessionsAPI, context.Background()
	width, err := strconv.Atoi(os.Getenv("WIDTH"))
	check(err)
	observation := policyclient.RawObservation{}
	for i := 0; i < width; i++ {
		observation.Obs = append(observation.Obs, 0.5)
	}
	predict := func(id string, step int64) (*policyclient.Prediction, *http.Response, error) {
		return sessions.SessionPredictRaw(ctx, id).XStep(step).RawObservation(observation).Execute()
	}
	other := func(id string, step int64) (*policyclient.Prediction, *http.Response, error) {
		request := sessions.SessionPredictDeterministicRaw(ctx, id).XStep(step)
		return request.RawObservation(observation).XPreviousReward(0.25).Execute()
	}

	start := policyclient.NewSessionStart()
	start.SetSeed(1 << 40)
	session, _, err := sessions.BeginSession(ctx).SessionStart(*start).Execute()
	check(err)
	fmt.Println("begun", session.GetSeed(), session.Steps)
	id, episode := session.SessionId, policyclient.NewEpisode(session)
	var answer *policyclient.Prediction
	for i := 0; i < 2; i++ {
		answer, _, err = policyclient.Step(episode, predict)
		check(err)
		fmt.Println("step", count(answer))
	}
	again, response, err := predict(id, 1)
	check(err)
	same := reflect.DeepEqual(again.Actions, answer.Actions)
	fmt.Println("again", same, response.Header.Get("x-step"))
	session, _, err = sessions.GetSession(ctx, id).Execute()
	check(err)
	fmt.Println("shown", session.Steps)
	_, response, _ = other(id, 1)
	fmt.Println("other", response.StatusCode)
	_, response, _ = other(id, 100000)
	fmt.Println("ahead", response.StatusCode)
	start = policyclient.NewSessionStart()
	start.SetEpisodeId("next")
	session, _, err = sessions.ResetSession(ctx, id).SessionStart(*start).Execute()
	check(err)
	fmt.Println("reset", session.GetSeed(), session.Steps, session.EpisodeId)
	episode = policyclient.NewEpisode(session)
	_, _, err = policyclient.Step(
		episode,
		func(id string, step int64) (*policyclient.Distribution, *http.Response, error) {
			request := sessions.SessionDistributionRaw(ctx, id).XStep(step)
			return request.RawObservation(observation).Execute()
		},
	)
	check(err)
	answer, _, err = policyclient.Step(episode, other)
	check(err)
	fmt.Println("steps", count(answer), episode.Steps())
	_, err = sessions.EndSession(ctx, id).Execute()
	check(err)
	_, response, _ = sessions.GetSession(ctx, id).Execute()
	fmt.Println("ended", response.StatusCode)
	session, _, err = sessions.BeginSession(ctx).Execute()
	check(err)
	seed, _ := session.GetSeedOk()
	fmt.Println("unseeded", seed == nil)
	state := "new"
	for i := 0; i < 3; i++ {
		request := client.PolicyAPI.PredictRaw(ctx).RawObservation(observation).XState(state)
		answer, response, err = request.Execute()
		check(err)
		state = response.Header.Get("x-state")
		fmt.Println("token", count(answer))
	}
	changed := state[:len(state)-4] + "AAAA"
	request := client.PolicyAPI.PredictRaw(ctx).RawObservation(observation).XState(changed)
	_, response, _ = request.Execute()
	fmt.Println("changed", response.StatusCode)
}
