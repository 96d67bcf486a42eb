import com.policyserver.client.ApiClient;
import com.policyserver.client.ApiException;
import com.policyserver.client.api.TeamsApi;
import com.policyserver.client.model.Prediction;
import com.policyserver.client.model.RawObservation;
import com.policyserver.client.model.TeamReset;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/** The calls of a team and of its sessions; prints what came of them. */
public class Team {
    static String counts(Map<String, Prediction> answers) {
        StringBuilder text = new StringBuilder();
        answers.forEach((name, answer) -> text.append(" " + name + " "
                + Math.round((Double) ((List<?>) answer.getActions().get(1)).get(0))));
        return text.toString();
    }

    public static void main(String[] arguments) throws Exception {
        String key = System.getenv("POLICY_SERVER_API_KEY");
        ApiClient client = new ApiClient();
        client.updateBaseUri(System.getenv("POLICY_SERVER_URL"));
        client.setRequestInterceptor(request -> request.header("access-token", key));
        int width = Integer.parseInt(System.getenv("WIDTH"));
        RawObservation observation = new RawObservation().obs(Collections.nCopies(width, 0.5));
        Map<String, RawObservation> both = new TreeMap<>();
        both.put("a", observation);
        both.put("b", observation);
        TeamsApi teams = new TeamsApi(client);

        System.out.println("plain" + counts(teams.predictRawAgents(both, 7L, null, null)));
        String session = teams.beginSessionAgents(null).getSessionId();
        Map<String, Prediction> answers = null;
        for (long step = 0; step < 2; step++) {
            answers = teams.sessionPredictRawAgents(session, step, both, null, null, null);
            System.out.println("step" + counts(answers));
        }
        System.out.println("again "
                + teams.sessionPredictRawAgents(session, 1L,
                        both, null, null, null).equals(answers));
        TeamReset reset = new TeamReset().agents(List.of("b"));
        System.out.println("reset " + teams.resetSessionAgents(session, reset).getAgents().get(0));
        System.out.println("step"
                + counts(teams.sessionPredictDeterministicRawAgents(session, 2L,
                        both, null, null)));
        System.out.println("shown " + teams.getSessionAgents(session).getSteps());
        teams.endSessionAgents(session);
        try {
            teams.getSessionAgents(session);
        } catch (ApiException error) {
            System.out.println("ended " + error.getCode());
        }
    }
}
