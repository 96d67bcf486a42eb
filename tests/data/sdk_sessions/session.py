"""Each call of a session, and of a state token; prints what came of it."""

import os
from collections.abc import Callable

from policy_client import (
    ApiClient,
    ApiException,
    Configuration,
    Episode,
    PolicyApi,
    RawObservation,
    SessionsApi,
    SessionStart,
)


def status_of(call: Callable[..., object], *arguments: object) -> int | None:
    try:
        call(*arguments)
    except ApiException as error:
        return error.status
    return None


configuration = Configuration(
    host=os.environ["POLICY_SERVER_URL"],
    api_key={"accessToken": os.environ["POLICY_SERVER_API_KEY"]},
)
observation = RawObservation(obs=[0.5] * int(os.environ["WIDTH"]))
with ApiClient(configuration) as client:
    sessions, policy = SessionsApi(client), PolicyApi(client)
    session = sessions.begin_session(SessionStart(seed=2**40))
    print("begun", session.seed, session.steps)
    episode = Episode(session)
    for _ in range(2):
        answer = episode.step(sessions.session_predict_raw, observation)
        print("step", round(answer.actions[1][0]))
    again = sessions.session_predict_raw_with_http_info(session.session_id, 1, observation)
    print("again", again.data.actions == answer.actions, again.headers["x-step"])
    print("shown", sessions.get_session(session.session_id).steps)
    other = sessions.session_predict_deterministic_raw
    print("other", status_of(other, session.session_id, 1, observation))
    print("ahead", status_of(other, session.session_id, 100000, observation))
    session = sessions.reset_session(session.session_id, SessionStart(episode_id="next"))
    print("reset", session.seed, session.steps, session.episode_id)
    episode = Episode(session)
    episode.step(sessions.session_distribution_raw, observation)
    answer = episode.step(other, observation, x_previous_reward=0.25)
    print("steps", round(answer.actions[1][0]), episode.steps)
    sessions.end_session(session.session_id)
    print("ended", status_of(sessions.get_session, session.session_id))
    print("unseeded", sessions.begin_session().seed is None)
    state = "new"
    for _ in range(3):
        found = policy.predict_raw_with_http_info(observation, x_state=state)
        state = found.headers["x-state"]
        print("token", round(found.data.actions[1][0]))
    changed = state[:-4] + "AAAA"
    print("changed", status_of(lambda: policy.predict_raw(observation, x_state=changed)))
