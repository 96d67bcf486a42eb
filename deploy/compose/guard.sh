#!/bin/sh
# What docker-compose.yaml runs before all else: whoever lets other machines in needs a key and
# passwords of their own, since those that stand in this repository are known to everybody.

is_this_machine() {
    case $1 in
        127.*|localhost|::1|'[::1]') return 0 ;;
        *) return 1 ;;
    esac
}

if is_this_machine "$PROXY_ADDRESS" && is_this_machine "$BIND_ADDRESS"; then
    exit 0
fi

missing=''
# $1: the variable, $2: its value, $3: the value that everybody knows.
needs_own() {
    if [ -z "$2" ] || [ "$2" = "$3" ]; then
        missing="$missing $1"
    fi
}
needs_own POLICY_SERVER_API_KEY "$POLICY_SERVER_API_KEY" 1234567asdfgh
needs_own GRAFANA_PASSWORD "$GRAFANA_PASSWORD" admin
needs_own ELASTIC_PASSWORD "$ELASTIC_PASSWORD" policy_server
needs_own KIBANA_PASSWORD "$KIBANA_PASSWORD" policy_server

if [ -n "$missing" ]; then
    echo "docker-compose.yaml: PROXY_ADDRESS=$PROXY_ADDRESS and BIND_ADDRESS=$BIND_ADDRESS let other" \
        "machines in: expected values of your own, got none or those of the repository for$missing;" \
        "set them in .env, or take 127.0.0.1" >&2
    exit 1
fi
