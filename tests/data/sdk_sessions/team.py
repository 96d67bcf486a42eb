"""The calls of a team and of its sessions; prints what came of them."""

import os

from policy_client import (
    ApiClient,
    ApiException,
    Configuration,
    Prediction,
    RawObservation,
    TeamReset,
    TeamsApi,
)


def counts(answers: dict[str, Prediction]) -> str:
    return " ".join(f"{name} {abs(round(a.actions[1][0]))}" for name, a in answers.items())


configuration = Configuration(
    host=os.environ["POLICY_SERVER_URL"],
    api_key={"accessToken": os.environ["POLICY_SERVER_API_KEY"]},
)
observation = RawObservation(obs=[0.5] * int(os.environ["WIDTH"]))
both = {"a": observation, "b": observation}
with ApiClient(configuration) as client:
    teams = TeamsApi(client)
    print("plain", counts(teams.predict_raw_agents(both, seed=7)))
    session = teams.begin_session_agents().session_id
    for step in range(2):
        answers = teams.session_predict_raw_agents(session, step, both)
        print("step", counts(answers))
    print("again", teams.session_predict_raw_agents(session, 1, both) == answers)
    print("reset", teams.reset_session_agents(session, TeamReset(agents=["b"])).agents[0])
    print("step", counts(teams.session_predict_deterministic_raw_agents(session, 2, both)))
    print("shown", teams.get_session_agents(session).steps)
    teams.end_session_agents(session)
    try:
        teams.get_session_agents(session)
    except ApiException as error:
        print("ended", error.status)
