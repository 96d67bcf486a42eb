// The calls of a team and of its sessions; prints what came of them.
import { Configuration, TeamsApi } from "policy-client";

const counts = (answers) => Object.entries(answers)
    .map(([name, answer]) => `${name} ${Math.abs(Math.round(answer.actions[1][0]))}`).join(" ");
const teams = new TeamsApi(new Configuration({
    basePath: process.env.POLICY_SERVER_URL,
    apiKey: process.env.POLICY_SERVER_API_KEY,
}));
const observation = { obs: Array(Number(process.env.WIDTH)).fill(0.5) };
const requestBody = { a: observation, b: observation };

console.log("plain", counts(await teams.predictRawAgents({ requestBody, seed: 7 })));
const sessionId = (await teams.beginSessionAgents()).session_id;
let answers;
for (let xStep = 0; xStep < 2; xStep++) {
    answers = await teams.sessionPredictRawAgents({ sessionId, xStep, requestBody });
    console.log("step", counts(answers));
}
const again = await teams.sessionPredictRawAgents({ sessionId, xStep: 1, requestBody });
console.log("again", JSON.stringify(again) === JSON.stringify(answers));
const reset = await teams.resetSessionAgents({ sessionId, teamReset: { agents: ["b"] } });
console.log("reset", reset.agents[0]);
console.log("step", counts(
    await teams.sessionPredictDeterministicRawAgents({ sessionId, xStep: 2, requestBody })));
console.log("shown", (await teams.getSessionAgents({ sessionId })).steps);
await teams.endSessionAgents({ sessionId });
try {
    await teams.getSessionAgents({ sessionId });
} catch (error) {
    console.log("ended", error.response.status);
}
