import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.WebSocket;
import java.net.http.WebSocketHandshakeException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.ConcurrentLinkedDeque;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.Consumer;

/**
 * Asks a served policy over one web socket: the closed loop of a simulator. Java 17, no libraries.
 *
 * <pre>{@code
 * try (var policy = new PolicyStream(URI.create("ws://127.0.0.1:8000/predict/stream"), key)) {
 *     List<Object> action = policy.predict(Map.of("mouse_row", 5, ...));
 * }
 * }</pre>
 *
 * <p>As a program it reads observations from standard input, one JSON object a line, and prints each
 * answer. A connection that breaks is opened again: without a memory a prediction changes nothing on
 * the server, so what was not answered is simply asked again. A policy's memory of an episode lives as
 * long as the connection. One thread at a time may use an instance.
 */
public final class PolicyStream implements AutoCloseable {
    private static final int ATTEMPTS = 6;
    private static final long FIRST_PAUSE_MS = 100;
    private static final Duration TIMEOUT = Duration.ofSeconds(30);
    private static final int OK = 200;
    // A server that is busy or not there yet, or the proxy's word for it.
    private static final List<Integer> BUSY = List.of(502, 503, 504);
    private static final int CONFLICT = 409;
    private static final String RESET = "{\"reset\":true}";
    private static final String EPISODE_LOST =
            "the connection broke in the middle of an episode, and the policy's memory of it is gone; "
                    + "begin another episode with reset()";

    /** The server refused an observation, or the connection. */
    public static final class PolicyException extends Exception {
        private static final long serialVersionUID = 1L;

        /** As the POST routes answer it: 422 is a wrong observation, 409 a lost memory. */
        public final int status;

        /** The server's answer as JSON: its "detail" says what is wrong. */
        public final String answer;

        PolicyException(int status, String answer) {
            super(status + ": " + answer);
            this.status = status;
            this.answer = answer;
        }
    }

    private final HttpClient client = HttpClient.newHttpClient();
    private final URI address;
    private final String key;
    private final Path uds;
    private WebSocket socket;
    private Answers answers;
    // How many observations of the episode were answered.
    private long steps;

    /**
     * Keeps where the policy is; the first question connects.
     *
     * @param address a stream's address, ws:// or wss://
     * @param key the access key; null where everybody is let in
     */
    public PolicyStream(URI address, String key) {
        this(address, key, null);
    }

    /**
     * Keeps where the policy is; the first question connects.
     *
     * @param address a stream's address, ws:// with any host where a UNIX socket is given
     * @param key the access key; null where everybody is let in
     * @param uds the UNIX socket of a server on this machine; null for TCP
     */
    public PolicyStream(URI address, String key, Path uds) {
        this.address = address;
        this.key = key;
        this.uds = uds;
    }

    /** Begins the next episode, with an empty memory. */
    public void reset() throws PolicyException, IOException, InterruptedException {
        steps = 0;
        answer(List.of(RESET).iterator(), 1, text -> {});
    }

    /**
     * Returns the action for an observation: numbers are Long or Double, vectors lists of these.
     *
     * @param observation what the route takes; values are numbers, booleans, or lists of them
     */
    @SuppressWarnings("unchecked")
    public List<Object> predict(Map<String, ?> observation)
            throws PolicyException, IOException, InterruptedException {
        List<String> texts = new ArrayList<>();
        answer(List.of(Json.write(observation)).iterator(), 1, texts::add);
        Map<String, Object> answer = (Map<String, Object>) Json.read(texts.get(0));
        if (answer.get("status") instanceof Long status) {
            throw new PolicyException(status.intValue(), texts.get(0));
        }
        return (List<Object>) answer.get("actions");
    }

    /**
     * Asks for many observations without waiting for each.
     *
     * @param observations JSON texts
     * @param inFlight how many are asked before the first of them is answered
     * @param consumer gets each answer's JSON, in order; one with a "status" is an error
     */
    public void answer(Iterator<String> observations, int inFlight, Consumer<String> consumer)
            throws PolicyException, IOException, InterruptedException {
        Deque<String> asked = new ArrayDeque<>();
        try {
            answerAll(observations, inFlight, consumer, asked);
        } finally {
            if (!asked.isEmpty()) {
                // Answers that nobody waits for must not be taken for those of the next question.
                abort();
            }
        }
    }

    private void answerAll(
            Iterator<String> observations, int inFlight, Consumer<String> consumer, Deque<String> asked)
            throws PolicyException, IOException, InterruptedException {
        int failures = 0;
        while (!asked.isEmpty() || observations.hasNext()) {
            String text;
            try {
                connect(asked);
                while (asked.size() < inFlight && observations.hasNext()) {
                    asked.add(observations.next());
                    send(asked.getLast());
                }
                text = answers.next(TIMEOUT);
            } catch (IOException broken) {
                abort();
                if (++failures == ATTEMPTS) {
                    throw broken;
                }
                Thread.sleep(FIRST_PAUSE_MS << (failures - 1));
                continue;
            }
            failures = 0;
            asked.remove();
            boolean isReset = text.startsWith("{\"reset\":true");
            steps = isReset ? 0 : steps + (text.startsWith("{\"status\"") ? 0 : 1);
            consumer.accept(text);
        }
    }

    /** Ends the connection. */
    @Override
    public void close() {
        if (socket != null && !socket.isOutputClosed()) {
            socket.sendClose(WebSocket.NORMAL_CLOSURE, "").exceptionally(gone -> null).join();
        }
        abort();
    }

    private void abort() {
        if (socket != null) {
            socket.abort();
            socket = null;
        }
    }

    private void connect(Iterable<String> unanswered)
            throws PolicyException, IOException, InterruptedException {
        if (socket != null) {
            return;
        }
        if (steps > 0 && hasMemory()) {
            throw new PolicyException(CONFLICT, EPISODE_LOST);
        }
        answers = new Answers();
        socket = uds == null ? overTcp() : overUnixSocket();
        for (String text : unanswered) {
            send(text);
        }
    }

    private WebSocket overUnixSocket() throws PolicyException, IOException {
        try {
            return UnixWebSocket.connect(uds, address, key, TIMEOUT, answers);
        } catch (UnixWebSocket.Refused refused) {
            if (BUSY.contains(refused.status)) {
                throw refused;
            }
            throw new PolicyException(refused.status, "the server refused the connection");
        }
    }

    private WebSocket overTcp() throws PolicyException, IOException {
        WebSocket.Builder builder = client.newWebSocketBuilder().connectTimeout(TIMEOUT);
        if (key != null) {
            builder.header("access-token", key);
        }
        try {
            return builder.buildAsync(address, answers).join();
        } catch (CompletionException failed) {
            if (failed.getCause() instanceof WebSocketHandshakeException refused
                    && !BUSY.contains(refused.getResponse().statusCode())) {
                int status = refused.getResponse().statusCode();
                throw new PolicyException(status, "the server refused the connection");
            }
            throw new IOException(address + ": " + failed.getCause(), failed);
        }
    }

    /** Asks the server whether the policy has a memory; a team may always have one. */
    private boolean hasMemory() throws IOException, InterruptedException {
        String stream = address.toString();
        String page = stream.replaceFirst("/\\w+/stream(\\?.*)?$", "/schema");
        if (page.equals(stream)) {
            return true;
        }
        URI schema = URI.create("http" + page.substring(2));
        String text = uds == null ? page(schema) : UnixWebSocket.get(uds, schema, key, TIMEOUT);
        Map<?, ?> policy = (Map<?, ?>) ((Map<?, ?>) Json.read(text)).get("policy");
        return policy == null || ((Long) policy.get("memory_width")) > 0;
    }

    private String page(URI schema) throws IOException, InterruptedException {
        HttpRequest.Builder request = HttpRequest.newBuilder(schema).timeout(TIMEOUT);
        if (key != null) {
            request.header("access-token", key);
        }
        request.version(HttpClient.Version.HTTP_1_1);
        var answer = client.send(request.build(), HttpResponse.BodyHandlers.ofString());
        if (answer.statusCode() != OK) {
            throw new IOException(schema + ": answered " + answer.statusCode());
        }
        return answer.body();
    }

    private void send(String text) throws IOException {
        try {
            // A web socket takes the next message when the last one has left.
            answers.expect();
            socket.sendText(text, true).join();
        } catch (CompletionException closed) {
            throw new IOException(closed.getCause());
        }
    }

    /** Puts messages together and hands them out in the order of the questions. */
    private static final class Answers implements WebSocket.Listener {
        private final Deque<CompletableFuture<String>> expected = new ConcurrentLinkedDeque<>();
        private final Deque<CompletableFuture<String>> waiting = new ArrayDeque<>();
        private final StringBuilder parts = new StringBuilder();
        private volatile IOException end;

        void expect() {
            CompletableFuture<String> answer = new CompletableFuture<>();
            waiting.add(answer);
            expected.add(answer);
            if (end != null) {
                answer.completeExceptionally(end);
            }
        }

        String next(Duration timeout) throws IOException, InterruptedException {
            try {
                String text = waiting.element().get(timeout.toMillis(), TimeUnit.MILLISECONDS);
                waiting.remove();
                return text;
            } catch (ExecutionException | TimeoutException failed) {
                throw new IOException("no answer: " + failed.getMessage(), failed);
            }
        }

        @Override
        public CompletionStage<?> onText(WebSocket socket, CharSequence part, boolean isLast) {
            parts.append(part);
            if (isLast) {
                expected.remove().complete(parts.toString());
                parts.setLength(0);
            }
            socket.request(1);
            return null;
        }

        @Override
        public CompletionStage<?> onClose(WebSocket socket, int code, String reason) {
            end(new IOException("the server closed the connection: " + code));
            return null;
        }

        @Override
        public void onError(WebSocket socket, Throwable error) {
            end(new IOException(error));
        }

        private void end(IOException reason) {
            end = reason;
            expected.forEach(answer -> answer.completeExceptionally(reason));
        }
    }

    private static final String HELP =
            """
            usage: java PolicyStream [--help] [--url URL] [--key KEY] [--in-flight N] [--uds PATH]

            Ask a served policy: one JSON observation a line in, one answer a line out.

              --url URL      default: ws://127.0.0.1:8000/predict/stream
              --key KEY      default: the environment's POLICY_SERVER_API_KEY
              --in-flight N  questions that wait at once; default: 1
              --uds PATH     the server's UNIX socket, in place of the host in --url""";

    public static void main(String[] arguments) throws InterruptedException {
        Map<String, String> options = new LinkedHashMap<>();
        for (int i = 0; i < arguments.length; i += 2) {
            boolean isKnown = List.of("--url", "--key", "--in-flight", "--uds").contains(arguments[i]);
            if (!isKnown || i + 1 == arguments.length) {
                System.out.println(HELP);
                System.exit(arguments[i].equals("--help") ? 0 : 2);
            }
            options.put(arguments[i], arguments[i + 1]);
        }
        URI address = URI.create(options.getOrDefault("--url", "ws://127.0.0.1:8000/predict/stream"));
        String key = options.getOrDefault("--key", System.getenv("POLICY_SERVER_API_KEY"));
        int inFlight = Integer.parseInt(options.getOrDefault("--in-flight", "1"));
        Path uds = options.containsKey("--uds") ? Path.of(options.get("--uds")) : null;
        var input = new InputStreamReader(System.in, StandardCharsets.UTF_8);
        Iterator<String> lines = new BufferedReader(input).lines().filter(x -> !x.isBlank()).iterator();
        boolean[] isWrong = {false};
        try (PolicyStream policy = new PolicyStream(address, key, uds)) {
            policy.answer(
                    lines,
                    inFlight,
                    answer -> {
                        isWrong[0] |= answer.startsWith("{\"status\"");
                        System.out.println(answer);
                    });
        } catch (PolicyException | IOException error) {
            System.err.println(error.getMessage());
            System.exit(2);
        }
        System.exit(isWrong[0] ? 1 : 0);
    }
}
