// Each call of a session, and of a state token; prints what came of it.
import { Configuration, Episode, PolicyApi, SessionsApi } from "policy-client";

async function statusOf(call) {
    try {
        await call;
    } catch (error) {
        return error.response.status;
    }
}

const count = (answer) => Math.abs(Math.round(answer.actions[1][0]));
const configuration = new Configuration({
    basePath: process.env.POLICY_SERVER_URL,
    apiKey: process.env.POLICY_SERVER_API_KEY,
});
const rawObservation = { obs: Array(Number(process.env.WIDTH)).fill(0.5) };
const sessions = new SessionsApi(configuration);
const policy = new PolicyApi(configuration);

let session = await sessions.beginSession({ sessionStart: { seed: 2 ** 40 } });
console.log("begun", session.seed, session.steps);
const sessionId = session.session_id;
let episode = new Episode(session);
// Both at once: they are made one after the other.
const [first, second] = await Promise.all([0, 1].map(() =>
    episode.step((step) => sessions.sessionPredictFlat({ ...step, rawObservation }))));
console.log("step", count(first));
console.log("step", count(second));
const again = await sessions.sessionPredictFlatRaw({ sessionId, xStep: 1, rawObservation });
const repeated = JSON.stringify((await again.value()).actions) === JSON.stringify(second.actions);
console.log("again", repeated, again.raw.headers.get("x-step"));
console.log("shown", (await sessions.getSession({ sessionId })).steps);
const other = (xStep) =>
    sessions.sessionPredictDeterministicFlat({ sessionId, xStep, rawObservation });
console.log("other", await statusOf(other(1)));
console.log("ahead", await statusOf(other(100000)));
session = await sessions.resetSession({ sessionId, sessionStart: { episode_id: "next" } });
console.log("reset", session.seed, session.steps, session.episode_id);
episode = new Episode(session);
await episode.step((step) => sessions.sessionDistributionFlat({ ...step, rawObservation }));
const answer = await episode.step((step) =>
    sessions.sessionPredictDeterministicFlat({ ...step, rawObservation, xPreviousReward: 0.25 }));
console.log("steps", count(answer), episode.steps);
await sessions.endSession({ sessionId });
console.log("ended", await statusOf(sessions.getSession({ sessionId })));
console.log("unseeded", ((await sessions.beginSession()).seed ?? null) === null);
let state = "new";
for (let i = 0; i < 3; i++) {
    const found = await policy.predictFlatRaw({ rawObservation, xState: state });
    state = found.raw.headers.get("x-state");
    console.log("token", count(await found.value()));
}
const changed = state.slice(0, -4) + "AAAA";
console.log("changed", await statusOf(policy.predictFlat({ rawObservation, xState: changed })));
