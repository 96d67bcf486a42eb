#!/bin/sh
# place-policy.sh SOURCE [COMMAND...]: put a mounted folder's policies into the server's own folder,
# POLICY_SERVER_HOME, which has to be writable, and run the command.
#
# schema.yaml becomes a link, so that a running server sees when its keys change; all else is copied.
# Without a folder at SOURCE nothing is placed. Addresses in POLICY_SERVER_MODEL_URI and
# POLICY_SERVER_SCHEMA_URI win: those files are the server's to fetch.
set -e

source=$1
home=$POLICY_SERVER_HOME
# What was placed at the last start; a file that has gone from SOURCE must not be served.
placed=$home/.placed
shift

if [ -d "$source" ]; then
    if [ ! -e "$placed" ]; then
        echo saved_model.zip > "$placed"
    fi
    while read -r name; do
        rm -rf "${home:?}/$name"
    done < "$placed"
    : > "$placed"
    for path in "$source"/*; do
        name=${path##*/}
        # Of a disk's own, which nobody but root may read.
        if [ "$name" = schema.yaml ] || [ "$name" = lost+found ]; then
            continue
        fi
        if [ "$name" = saved_model.zip ] && [ -n "$POLICY_SERVER_MODEL_URI" ]; then
            continue
        fi
        echo "$name" >> "$placed"
        # Kubernetes makes a ConfigMap's files links into a folder that it replaces.
        cp -rL "$path" "$home/"
    done
    if [ -z "$POLICY_SERVER_SCHEMA_URI" ]; then
        ln -sfn "$source/schema.yaml" "$home/schema.yaml"
    fi
fi
exec "$@"
