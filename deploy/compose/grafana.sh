#!/bin/sh
# Grafana takes GF_SECURITY_ADMIN_PASSWORD when it makes its database and never again: a password that
# is set later would leave the public one valid. A start that can't set it ends.
set -e

if [ -e "$GF_PATHS_DATA/grafana.db" ]; then
    printf '%s\n' "$GF_SECURITY_ADMIN_PASSWORD" \
        | grafana cli --homepath "$GF_PATHS_HOME" --config "$GF_PATHS_CONFIG" \
            admin reset-admin-password --password-from-stdin
fi
exec "$@"
