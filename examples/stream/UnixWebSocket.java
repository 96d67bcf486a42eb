import java.io.ByteArrayOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.net.URI;
import java.net.UnixDomainSocketAddress;
import java.net.http.WebSocket;
import java.nio.ByteBuffer;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.time.Duration;
import java.util.Base64;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/**
 * A web socket over the UNIX socket of a server on this machine, which java.net.http can't open.
 *
 * <p>RFC 6455 as far as a stream needs it: text, pings, and the end. Java 17, no libraries.
 */
final class UnixWebSocket implements WebSocket {
    private static final int TEXT = 1;
    private static final int BINARY = 2;
    private static final int CLOSE = 8;
    private static final int PING = 9;
    private static final int PONG = 10;
    private static final int SWITCHING = 101;
    private static final int OK = 200;
    private static final String ACCEPTED = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

    /** The server answered the handshake by something else than a web socket. */
    static final class Refused extends IOException {
        private static final long serialVersionUID = 1L;

        final int status;

        Refused(int status) {
            super("the server refused the connection with " + status);
            this.status = status;
        }
    }

    private final SocketChannel channel;
    private final ByteBuffer received = ByteBuffer.allocate(1 << 16).limit(0);
    private volatile boolean isEnded;

    private UnixWebSocket(Path path) throws IOException {
        channel = SocketChannel.open(UnixDomainSocketAddress.of(path));
    }

    /**
     * Shakes hands, and hands each message to a listener from then on.
     *
     * @param path the server's UNIX socket
     * @param address the stream's, whose host is only named
     * @param key the access key; null where everybody is let in
     * @param timeout the longest wait for the handshake's answer
     * @param listener hears of messages, of the end, and of errors, on a thread of its own
     */
    static UnixWebSocket connect(
            Path path, URI address, String key, Duration timeout, Listener listener)
            throws IOException {
        UnixWebSocket socket = new UnixWebSocket(path);
        var timer = socket.endAfter(timeout);
        try {
            socket.shakeHands(address, key);
            timer.complete(null);
        } catch (IOException failed) {
            socket.abort();
            throw failed;
        }
        Thread reader = new Thread(() -> socket.listen(listener), "policy stream");
        reader.setDaemon(true);
        reader.start();
        return socket;
    }

    /**
     * Returns the body of a page.
     *
     * @param path the server's UNIX socket
     * @param page its address, whose host is only named
     * @param key the access key; null where everybody is let in
     * @param timeout the longest wait for all of it
     */
    static String get(Path path, URI page, String key, Duration timeout) throws IOException {
        UnixWebSocket socket = new UnixWebSocket(path);
        var timer = socket.endAfter(timeout);
        try {
            socket.write(head(page, key, "Connection: close\r\n"));
            int status = statusOf(socket.readHead());
            if (status != OK) {
                throw new IOException(page + ": answered " + status);
            }
            var body = new ByteArrayOutputStream();
            while (socket.received.hasRemaining() || socket.fill()) {
                body.write(socket.received.get());
            }
            return body.toString(StandardCharsets.UTF_8);
        } finally {
            timer.complete(null);
            socket.abort();
        }
    }

    /** Returns a timer that ends the connection unless it is completed before. */
    private CompletableFuture<Void> endAfter(Duration timeout) {
        var timer = new CompletableFuture<Void>();
        timer.orTimeout(timeout.toMillis(), TimeUnit.MILLISECONDS)
                .exceptionally(late -> {
                    abort();
                    return null;
                });
        return timer;
    }

    private static int statusOf(String head) throws IOException {
        String[] words = head.split(" ", 3);
        if (words.length < 2 || !words[1].matches("[0-9]{3}")) {
            throw new IOException("the server answered what is no HTTP");
        }
        return Integer.parseInt(words[1]);
    }

    private static ByteBuffer head(URI address, String key, String more) {
        String query = address.getRawQuery() == null ? "" : "?" + address.getRawQuery();
        String access = key == null ? "" : "access-token: " + key + "\r\n";
        String lines = "GET " + address.getRawPath() + query + " HTTP/1.1\r\nHost: "
                + address.getRawAuthority() + "\r\n" + access + more + "\r\n";
        return StandardCharsets.ISO_8859_1.encode(lines);
    }

    private void shakeHands(URI address, String key) throws IOException {
        byte[] random = new byte[16];
        ThreadLocalRandom.current().nextBytes(random);
        String nonce = Base64.getEncoder().encodeToString(random);
        String upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
        write(head(address, key, upgrade + "Sec-WebSocket-Key: " + nonce + "\r\n"));
        String answer = readHead();
        int status = statusOf(answer);
        if (status != SWITCHING) {
            throw new Refused(status);
        }
        try {
            byte[] digest = MessageDigest.getInstance("SHA-1")
                    .digest((nonce + ACCEPTED).getBytes(StandardCharsets.ISO_8859_1));
            if (!answer.contains(Base64.getEncoder().encodeToString(digest))) {
                throw new IOException("the server did not understand the handshake");
            }
        } catch (NoSuchAlgorithmException missing) {
            throw new IllegalStateException(missing);
        }
    }

    private String readHead() throws IOException {
        StringBuilder head = new StringBuilder();
        while (head.length() < 4 || !head.substring(head.length() - 4).equals("\r\n\r\n")) {
            head.append((char) (next() & 0xFF));
        }
        return head.toString();
    }

    private void listen(Listener listener) {
        var message = new ByteArrayOutputStream();
        try {
            while (true) {
                int first = next() & 0xFF;
                byte[] payload = readPayload();
                int kind = first & 0x0F;
                if (kind == PING) {
                    send(PONG, payload);
                } else if (kind == CLOSE) {
                    int code = payload.length < 2 ? 1005 : ByteBuffer.wrap(payload).getShort() & 0xFFFF;
                    listener.onClose(this, code, "");
                    abort();
                    return;
                } else if (kind != PONG) {
                    message.write(payload, 0, payload.length);
                    if ((first & 0x80) != 0) {
                        listener.onText(this, message.toString(StandardCharsets.UTF_8), true);
                        message.reset();
                    }
                }
            }
        } catch (IOException broken) {
            abort();
            listener.onError(this, broken);
        }
    }

    private byte[] readPayload() throws IOException {
        long length = next() & 0x7F;
        int wide = length == 126 ? 2 : length == 127 ? 8 : 0;
        for (int at = 0; at < wide; at++) {
            length = (at == 0 ? 0 : length << 8) | (next() & 0xFF);
        }
        byte[] payload = new byte[Math.toIntExact(length)];
        for (int at = 0; at < payload.length; ) {
            if (!received.hasRemaining() && !fill()) {
                throw new EOFException("the server closed the connection");
            }
            int count = Math.min(received.remaining(), payload.length - at);
            received.get(payload, at, count);
            at += count;
        }
        return payload;
    }

    private byte next() throws IOException {
        if (!received.hasRemaining() && !fill()) {
            throw new EOFException("the server closed the connection");
        }
        return received.get();
    }

    private boolean fill() throws IOException {
        received.clear();
        int count = channel.read(received);
        received.flip();
        return count > 0;
    }

    private synchronized void send(int kind, byte[] payload) throws IOException {
        int mask = ThreadLocalRandom.current().nextInt();
        ByteBuffer frame = ByteBuffer.allocate(payload.length + 14).put((byte) (0x80 | kind));
        if (payload.length < 126) {
            frame.put((byte) (0x80 | payload.length));
        } else if (payload.length < 1 << 16) {
            frame.put((byte) (0x80 | 126)).putShort((short) payload.length);
        } else {
            frame.put((byte) (0x80 | 127)).putLong(payload.length);
        }
        frame.putInt(mask);
        for (int at = 0; at < payload.length; at++) {
            frame.put((byte) (payload[at] ^ (mask >> (24 - 8 * (at % 4)))));
        }
        write(frame.flip());
    }

    private void write(ByteBuffer data) throws IOException {
        while (data.hasRemaining()) {
            channel.write(data);
        }
    }

    private CompletableFuture<WebSocket> sent(int kind, byte[] payload) {
        try {
            send(kind, payload);
            return CompletableFuture.completedFuture(this);
        } catch (IOException broken) {
            return CompletableFuture.failedFuture(broken);
        }
    }

    private CompletableFuture<WebSocket> sent(int kind, ByteBuffer payload) {
        byte[] bytes = new byte[payload.remaining()];
        payload.get(bytes);
        return sent(kind, bytes);
    }

    @Override
    public CompletableFuture<WebSocket> sendText(CharSequence text, boolean isLast) {
        return sent(TEXT, text.toString().getBytes(StandardCharsets.UTF_8));
    }

    @Override
    public CompletableFuture<WebSocket> sendBinary(ByteBuffer data, boolean isLast) {
        return sent(BINARY, data);
    }

    @Override
    public CompletableFuture<WebSocket> sendPing(ByteBuffer message) {
        return sent(PING, message);
    }

    @Override
    public CompletableFuture<WebSocket> sendPong(ByteBuffer message) {
        return sent(PONG, message);
    }

    @Override
    public CompletableFuture<WebSocket> sendClose(int code, String reason) {
        return sent(CLOSE, ByteBuffer.allocate(2).putShort((short) code).flip());
    }

    @Override
    public void request(long count) {
        // Messages are handed over as they come.
    }

    @Override
    public String getSubprotocol() {
        return "";
    }

    @Override
    public boolean isOutputClosed() {
        return isEnded;
    }

    @Override
    public boolean isInputClosed() {
        return isEnded;
    }

    @Override
    public void abort() {
        isEnded = true;
        try {
            channel.close();
        } catch (IOException ignored) {
            // It is closed as far as it can be.
        }
    }
}
