import com.policyserver.client.ApiClient;
import com.policyserver.client.ApiException;
import com.policyserver.client.ApiResponse;
import com.policyserver.client.Episode;
import com.policyserver.client.api.PolicyApi;
import com.policyserver.client.api.SessionsApi;
import com.policyserver.client.model.Prediction;
import com.policyserver.client.model.RawObservation;
import com.policyserver.client.model.Session;
import com.policyserver.client.model.SessionStart;
import java.util.Collections;
import java.util.List;

/** Each call of a session, and of a state token; prints what came of it. */
public class Sessions {
    interface Call {
        Object call() throws ApiException;
    }

    static int statusOf(Call call) {
        try {
            call.call();
        } catch (ApiException error) {
            return error.getCode();
        }
        return 0;
    }

    static long count(Prediction answer) {
        return Math.round((Double) ((List<?>) answer.getActions().get(1)).get(0));
    }

    public static void main(String[] arguments) throws Exception {
        String key = System.getenv("POLICY_SERVER_API_KEY");
        ApiClient client = new ApiClient();
        client.updateBaseUri(System.getenv("POLICY_SERVER_URL"));
        client.setRequestInterceptor(request -> request.header("access-token", key));
        int width = Integer.parseInt(System.getenv("WIDTH"));
        RawObservation observation = new RawObservation().obs(Collections.nCopies(width, 0.5));
        SessionsApi sessions = new SessionsApi(client);
        PolicyApi policy = new PolicyApi(client);

        Session session = sessions.beginSession(new SessionStart().seed(1L << 40));
        System.out.println("begun " + session.getSeed() + " " + session.getSteps());
        String id = session.getSessionId();
        Episode episode = new Episode(session);
        Prediction answer = null;
        for (int i = 0; i < 2; i++) {
            answer = episode.step((name, step) ->
                    sessions.sessionPredictRaw(name, step,
                            observation, null, null, null, null, null));
            System.out.println("step " + count(answer));
        }
        ApiResponse<Prediction> again =
                sessions.sessionPredictRawWithHttpInfo(id, 1L,
                        observation, null, null, null, null, null);
        System.out.println("again " + again.getData().getActions().equals(answer.getActions())
                + " " + again.getHeaders().get("x-step").get(0));
        System.out.println("shown " + sessions.getSession(id).getSteps());
        System.out.println("other " + statusOf(() ->
                sessions.sessionPredictDeterministicRaw(id, 1L,
                        observation, null, null, null, null)));
        System.out.println("ahead " + statusOf(() ->
                sessions.sessionPredictDeterministicRaw(id, 100000L,
                        observation, null, null, null, null)));
        session = sessions.resetSession(id, new SessionStart().episodeId("next"));
        System.out.println("reset " + session.getSeed() + " " + session.getSteps() + " "
                + session.getEpisodeId());
        Episode next = new Episode(session);
        next.step((name, step) ->
                sessions.sessionDistributionRaw(name, step, observation, null, null, null, null));
        answer = next.step((name, step) ->
                sessions.sessionPredictDeterministicRaw(name, step,
                        observation, 0.25, null, null, null));
        System.out.println("steps " + count(answer) + " " + next.getSteps());
        sessions.endSession(id);
        System.out.println("ended " + statusOf(() -> sessions.getSession(id)));
        System.out.println("unseeded " + (sessions.beginSession(null).getSeed() == null));
        String state = "new";
        for (int i = 0; i < 3; i++) {
            ApiResponse<Prediction> found =
                    policy.predictRawWithHttpInfo(observation, null, state, null, null);
            state = found.getHeaders().get("x-state").get(0);
            System.out.println("token " + count(found.getData()));
        }
        String changed = state.substring(0, state.length() - 4) + "AAAA";
        System.out.println("changed " + statusOf(() ->
                policy.predictRaw(observation, null, changed, null, null)));
    }
}
