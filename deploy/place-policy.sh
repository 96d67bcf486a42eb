#!/bin/sh
# place-policy.sh SOURCE [COMMAND...]: put a mounted folder's policies into the server's own folder,
# POLICY_SERVER_HOME, which has to be writable, and run the command.
#
# schema.yaml becomes a link, so that a running server sees when its keys change; all else is copied.
# Without a folder at SOURCE nothing is placed; without a command either, that is refused. Addresses in
# POLICY_SERVER_MODEL_URI and POLICY_SERVER_SCHEMA_URI win: those files are the server's to fetch.
set -e

source=$1
home=$POLICY_SERVER_HOME
# What was placed at the last start; a file that has gone from SOURCE must not be served.
placed=$home/.placed
newline='
'
shift

# $1: the path, $2: what was expected there, what came and what to do.
refuse() {
    printf '%s' "place-policy.sh: $1: $2" | tr '\n' '?' >&2
    echo >&2
    exit 1
}

# Whether a file of SOURCE is one that the server gets from there; $1: its name.
is_used() {
    case $1 in
        # Of a disk's own, which nobody but root may read.
        lost+found) return 1 ;;
        schema.yaml) [ -z "$POLICY_SERVER_SCHEMA_URI" ] ;;
        saved_model.zip) [ -z "$POLICY_SERVER_MODEL_URI" ] ;;
    esac
}

refuse_unreadable() {
    if [ -L "$1" ] && [ ! -e "$1" ]; then
        refuse "$1" "expected a file, got a link to $(readlink "$1"), which does not exist here; \
put the file itself in its place"
    fi
    refuse "$1" "expected to be readable by user $(id -u), got mode $(stat -L -c '%a of user %u' "$1"); \
run chmod -R a+rX on the folder that is mounted at $source"
}

# All of it before anything is removed or copied.
check_source() {
    if [ ! -r "$source" ] || [ ! -x "$source" ]; then
        refuse_unreadable "$source"
    fi
    is_empty=yes
    for path in "$source"/*; do
        name=${path##*/}
        if { [ ! -e "$path" ] && [ ! -L "$path" ]; } || ! is_used "$name"; then
            continue
        fi
        is_empty=''
        case $name in
            *"$newline"*)
                refuse "$path" "expected a name of one line, got one with a newline; rename it"
                ;;
        esac
        unreadable=$(find -L "$path" \( ! -readable -o -type d ! -executable \) -print -quit)
        if [ -n "$unreadable" ]; then
            refuse_unreadable "$unreadable"
        fi
    done
    if [ -n "$is_empty" ] && [ -z "$POLICY_SERVER_SCHEMA_URI" ]; then
        refuse "$source" "expected schema.yaml and the policy's files, found nothing to take; look \
at the path that is mounted there: Docker makes an empty folder of one that does not exist"
    fi
    if [ ! -w "$home" ]; then
        refuse "$home" "expected to be writable by user $(id -u), got mode \
$(stat -L -c '%a of user %u' "$home"); mount a volume there that this user may write to"
    fi
}

if [ -d "$source" ]; then
    check_source
    if [ ! -e "$placed" ]; then
        echo saved_model.zip > "$placed"
    fi
    while IFS= read -r name; do
        case $name in
            # Earlier versions wrote a name with a newline in several lines.
            ''|.|..|*/*) continue ;;
        esac
        rm -rf "${home:?}/$name"
    done < "$placed"
    : > "$placed"
    for path in "$source"/*; do
        name=${path##*/}
        if [ ! -e "$path" ] || [ "$name" = schema.yaml ] || ! is_used "$name"; then
            continue
        fi
        printf '%s\n' "$name" >> "$placed"
        # Kubernetes makes a ConfigMap's files links into a folder that it replaces.
        cp -rL "$path" "$home/"
    done
    if is_used schema.yaml; then
        ln -sfn "$source/schema.yaml" "$home/schema.yaml"
    fi
elif [ -e "$source" ]; then
    refuse "$source" "expected a folder with schema.yaml and the policy's files, got a file; mount \
their folder there"
elif [ $# -eq 0 ]; then
    refuse "$source" "expected a folder with schema.yaml and the policy's files, got none; look at its \
path"
fi
exec "$@"
