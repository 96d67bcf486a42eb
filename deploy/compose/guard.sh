#!/bin/sh
# What docker-compose.yaml runs before all else: whoever lets other machines in needs a key and
# passwords of their own, since those that stand in this repository are known to everybody, and may
# not take the token from Ray's dashboard, whose users run code.

is_this_machine() {
    case $1 in
        127.*|localhost|::1|'[::1]') return 0 ;;
        *) return 1 ;;
    esac
}

if is_this_machine "$PROXY_ADDRESS" && is_this_machine "$BIND_ADDRESS"; then
    exit 0
fi

# Whichever variable one of them stands in: who guesses tries them all.
is_public() {
    case $1 in
        1234567asdfgh|admin|policy_server|'a long random text') return 0 ;;
        *) return 1 ;;
    esac
}

missing=''
# $1: the variable, $2: its value.
needs_own() {
    if [ -z "$2" ] || is_public "$2"; then
        missing="$missing $1"
    fi
}
may_have_own() {
    if is_public "$2"; then
        missing="$missing $1"
    fi
}
needs_own POLICY_SERVER_API_KEY "$POLICY_SERVER_API_KEY"
needs_own GRAFANA_PASSWORD "$GRAFANA_PASSWORD"
needs_own ELASTIC_PASSWORD "$ELASTIC_PASSWORD"
needs_own KIBANA_PASSWORD "$KIBANA_PASSWORD"
may_have_own POLICY_SERVER_ADMIN_KEY "$POLICY_SERVER_ADMIN_KEY"
may_have_own POLICY_SERVER_METRICS_KEY "$POLICY_SERVER_METRICS_KEY"
may_have_own POLICY_SERVER_STATE_KEY "$POLICY_SERVER_STATE_KEY"
may_have_own RAY_AUTH_TOKEN "$RAY_AUTH_TOKEN"

status=0
if [ -n "$missing" ]; then
    echo "docker-compose.yaml: PROXY_ADDRESS=$PROXY_ADDRESS and BIND_ADDRESS=$BIND_ADDRESS let other" \
        "machines in: expected values of your own, got none or those of the repository for$missing;" \
        "set them in .env, or take 127.0.0.1" >&2
    status=1
fi
case $RAY_AUTH_MODE in
    ''|token) ;;
    *)
        echo "docker-compose.yaml: RAY_AUTH_MODE: expected token or none where other machines are" \
            "let in, got $RAY_AUTH_MODE, with which Ray's dashboard lets everybody run code" >&2
        status=1
        ;;
esac
exit $status
