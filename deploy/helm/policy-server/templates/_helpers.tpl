{{- define "policy-server.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "policy-server.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "policy-server.labels" -}}
{{ include "policy-server.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* The Secret of the access key; empty where schema.yaml has to have one. */}}
{{- define "policy-server.secret" -}}
{{- if and .Values.apiKey.value .Values.apiKey.existingSecret -}}
{{- fail "apiKey: give value or existingSecret, not both" -}}
{{- end -}}
{{- if .Values.apiKey.existingSecret -}}
{{- .Values.apiKey.existingSecret -}}
{{- else if .Values.apiKey.value -}}
{{- include "policy-server.name" . -}}
{{- end -}}
{{- end -}}

{{/* Where the policy's files are copied from; empty where the server fetches them. */}}
{{- define "policy-server.source" -}}
{{- $uris := or .Values.policy.modelUri .Values.policy.schemaUri -}}
{{- $given := 0 -}}
{{- range list $uris .Values.policy.existingClaim .Values.policy.configMap -}}
{{- if . }}{{ $given = add1 $given }}{{ end -}}
{{- end -}}
{{- if gt (int $given) 1 -}}
{{- fail "policy: give schemaUri, with or without modelUri, or existingClaim, or configMap; not several" -}}
{{- end -}}
{{- if and .Values.policy.modelUri (not .Values.policy.schemaUri) -}}
{{- fail "policy: modelUri needs schemaUri, which describes it" -}}
{{- end -}}
{{- if not $uris -}}
{{- if or .Values.policy.existingClaim .Values.policy.configMap -}}
/source
{{- else -}}
/opt/policy-server/examples/{{ .Values.policy.example }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Whose x-forwarded-* headers are believed; empty for nobody's. Without an ingress, a client's own
address may be a private one, and its headers would say another. */}}
{{- define "policy-server.forwarded" -}}
{{- if .Values.forwardedAllowIps -}}
{{- .Values.forwardedAllowIps -}}
{{- else if .Values.ingress.enabled -}}
10.0.0.0/8,172.16.0.0/12,192.168.0.0/16
{{- end -}}
{{- end -}}

{{- define "policy-server.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "policy-server.metricsPort" -}}
{{- .Values.settings.METRICS_PORT | default 8080 | toString -}}
{{- end -}}

{{- define "policy-server.rayMetricsPort" -}}
{{- if eq (include "policy-server.metricsPort" .) "8081" }}8082{{ else }}8081{{ end -}}
{{- end -}}

{{/* A value as the server and Kubernetes read it. YAML's numbers come as floats, which Helm writes as 1e+06 from a
million on. */}}
{{- define "policy-server.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . | toString }}{{ end -}}
{{- end -}}

{{/* The settings that are keys of the server, by their names in `keys` and in the chart's own Secret. */}}
{{- define "policy-server.keyNames" -}}
ADMIN_KEY: [adminKey, admin-key]
METRICS_KEY: [metricsKey, metrics-key]
STATE_KEY: [stateKey, state-key]
{{- end -}}

{{/* The keys of the server that lie in Secrets: the Secret and its key, by the setting's name. */}}
{{- define "policy-server.keys" -}}
{{- $named := 0 -}}
{{- range $name, $places := include "policy-server.keyNames" . | fromYaml -}}
{{- $own := index $.Values.settings $name -}}
{{- with index $.Values.keys (first $places) -}}
{{- $named = add1 $named -}}
{{- if $own -}}
{{- fail (printf "keys: give %s or settings.%s, not both" (first $places) $name) -}}
{{- end -}}
{{- if not $.Values.keys.existingSecret -}}
{{- fail (printf "keys.%s: names a key of keys.existingSecret, which is not given" (first $places)) -}}
{{- end }}
{{ $name }}: [{{ $.Values.keys.existingSecret | quote }}, {{ . | quote }}]
{{- end }}
{{- if $own }}
{{ $name }}: [{{ include "policy-server.name" $ | quote }}, {{ last $places }}]
{{- end }}
{{- end }}
{{- if and .Values.keys.existingSecret (not $named) -}}
{{- fail "keys.existingSecret: name adminKey, metricsKey or stateKey, the keys that it has" -}}
{{- end }}
{{- end -}}

{{/* The Secret of the key that Prometheus sends, and its place there; empty where none is asked for. */}}
{{- define "policy-server.scrapeKey" -}}
{{- $place := index (include "policy-server.keys" . | fromYaml) "METRICS_KEY" -}}
{{- if .Values.serviceMonitor.keySecret -}}
name: {{ .Values.serviceMonitor.keySecret | quote }}
key: metrics-key
{{- else if $place -}}
name: {{ first $place | quote }}
key: {{ last $place | quote }}
{{- else -}}
{{- range .Values.env -}}
{{- if eq (.name | default "" | upper) "POLICY_SERVER_METRICS_KEY" -}}
{{- fail "serviceMonitor.keySecret: the server asks for POLICY_SERVER_METRICS_KEY of env; name a Secret that has it under metrics-key" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The contents of the chart's own Secret; empty where it has none. */}}
{{- define "policy-server.secretData" -}}
{{- if and .Values.apiKey.value (eq (include "policy-server.secret" .) (include "policy-server.name" .)) }}
{{ .Values.apiKey.secretKey }}: {{ .Values.apiKey.value | quote }}
{{- end }}
{{- range $name, $places := include "policy-server.keyNames" . | fromYaml }}
{{- with index $.Values.settings $name }}
{{ last $places }}: {{ include "policy-server.text" . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* How many probes, one in two seconds, a start may fail: it may fetch the policy and load it, each for
as long as its setting says. Kubernetes takes no more than 32 bits hold, some 136 years. */}}
{{- define "policy-server.startupFailures" -}}
{{- $load := .Values.settings.START_TIMEOUT_S | default 300 | float64 -}}
{{- $fetch := .Values.settings.DOWNLOAD_TIMEOUT_S | default 600 | float64 -}}
{{- divf (addf $load $fetch) 2 | ceil | minf 2147483647 | int64 -}}
{{- end -}}

{{/* Whether versions can be deployed, by a key that the chart knows of; empty where not. */}}
{{- define "policy-server.isAdmin" -}}
{{- if hasKey (include "policy-server.keys" . | fromYaml) "ADMIN_KEY" }}true{{ end -}}
{{- range .Values.env -}}
{{- if eq (.name | default "" | upper) "POLICY_SERVER_ADMIN_KEY" }}true{{ end -}}
{{- end -}}
{{- end -}}

{{/* Keys that stand in this project's repository, so that everybody can read them: those of
deploy/compose/guard.sh. */}}
{{- define "policy-server.publicKeys" -}}
[1234567asdfgh, admin, policy_server, a long random text]
{{- end -}}

{{/* The keys that the values have in clear, wherever they are given: pairs of the place and the key. */}}
{{- define "policy-server.writtenKeys" -}}
{{- $names := include "policy-server.keyNames" . | fromYaml -}}
{{- with .Values.apiKey.value }}
- [apiKey.value, {{ . | quote }}]
{{- end }}
{{- range $name := keys $names | sortAlpha }}
{{- with index $.Values.settings $name }}
- [settings.{{ $name }}, {{ include "policy-server.text" . | quote }}]
{{- end }}
{{- end }}
{{- range .Values.env }}
{{- /* The server takes the names of its variables in any case. */}}
{{- $name := .name | default "" | upper | trimPrefix "POLICY_SERVER_" }}
{{- if and .value (or (eq $name "API_KEY") (hasKey $names $name)) }}
- [env {{ .name }}, {{ .value | toString | quote }}]
{{- end }}
{{- end }}
{{- end -}}

{{/* Refuses public keys, and to show the image's example by its own key, beyond the cluster. */}}
{{- define "policy-server.exposure" -}}
{{- if or .Values.ingress.enabled (ne .Values.service.type "ClusterIP") -}}
{{- $shown := "ingress.enabled and service.type LoadBalancer or NodePort let others in" -}}
{{- $public := include "policy-server.publicKeys" . | fromYamlArray -}}
{{- range include "policy-server.writtenKeys" . | fromYamlArray -}}
{{- if has (last .) $public -}}
{{- fail (printf "%s: %s, and this key stands in the project's repository, where everybody can read it; give a key of your own" (first .) $shown) -}}
{{- end -}}
{{- end -}}
{{- $policy := .Values.policy -}}
{{- $isExample := not (or $policy.schemaUri $policy.existingClaim $policy.configMap) -}}
{{- $hasKey := or .Values.apiKey.value .Values.apiKey.existingSecret -}}
{{- range .Values.env -}}
{{- if and (eq (.name | default "" | upper) "POLICY_SERVER_API_KEY") (or .value .valueFrom) }}{{ $hasKey = true }}{{ end -}}
{{- end -}}
{{- if and $isExample (not $hasKey) -}}
{{- fail (printf "apiKey: %s, and the examples' key is known to everybody; give a key of your own" $shown) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Refuses ports, addresses, numbers of pods and places of keys that exclude each other. */}}
{{- define "policy-server.places" -}}
{{- $port := include "policy-server.metricsPort" . -}}
{{- if eq $port "8000" -}}
{{- fail "settings.METRICS_PORT: 8000 is the port of HTTP; expected another one" -}}
{{- end -}}
{{- if gt (int $port) 65535 -}}
{{- fail (printf "settings.METRICS_PORT: expected up to 65535, got %s" $port) -}}
{{- end -}}
{{- $dashboard := include "policy-server.text" (.Values.settings.DASHBOARD_PORT | default 0) -}}
{{- if or (eq $dashboard "8000") (eq $dashboard $port) -}}
{{- fail (printf "settings.DASHBOARD_PORT: %s is taken by HTTP or the metrics; expected another one" $dashboard) -}}
{{- end -}}
{{- $host := .Values.settings.METRICS_HOST | default "" | toString -}}
{{- if and .Values.serviceMonitor.enabled (or (hasPrefix "127." $host) (has $host (list "localhost" "::1"))) -}}
{{- fail (printf "settings.METRICS_HOST: %s is not reached from outside the pod, and serviceMonitor.enabled has Prometheus ask there" $host) -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail (printf "autoscaling: minReplicas is %d; expected up to maxReplicas, %d" (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- $replicas := .Values.settings.NUM_REPLICAS | default 1 | int -}}
{{- $most := .Values.settings.MAX_REPLICAS | default 0 | int -}}
{{- if and $most (gt $replicas $most) -}}
{{- fail (printf "settings.MAX_REPLICAS: is %d; expected 0, or NUM_REPLICAS (%d) or more" $most $replicas) -}}
{{- end -}}
{{- if .Values.apiKey.value -}}
{{- range $name, $places := include "policy-server.keyNames" . | fromYaml -}}
{{- if and (index $.Values.settings $name) (eq $.Values.apiKey.secretKey (last $places)) -}}
{{- fail (printf "apiKey.secretKey: %s is the place of settings.%s in the chart's Secret; expected another name" (last $places) $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Refuses what would lose versions or requests. */}}
{{- define "policy-server.checks" -}}
{{- $isAdmin := include "policy-server.isAdmin" . -}}
{{- $isSeveral := or .Values.autoscaling.enabled (gt (int .Values.replicaCount) 1) -}}
{{- if and $isAdmin $isSeveral (not .Values.ray.address) -}}
{{- fail "ADMIN_KEY: a deploy would reach one pod only; use one pod, or ray.address, whose cluster the pods share their versions by" -}}
{{- end -}}
{{- if and .Values.home.existingClaim $isSeveral -}}
{{- fail "home.existingClaim: is the folder of one pod; expected replicaCount 1 without autoscaling" -}}
{{- end -}}
{{- include "policy-server.exposure" . -}}
{{- include "policy-server.places" . -}}
{{- $drain := float64 (.Values.settings.DRAIN_S | default 0) -}}
{{- $timeout := float64 (.Values.settings.REQUEST_TIMEOUT_S | default 30) -}}
{{- $needed := addf 5 $drain $timeout -}}
{{- if le (float64 .Values.terminationGracePeriodSeconds) $needed -}}
{{- fail (printf "terminationGracePeriodSeconds: is %d; expected more than %s: 5 s until the proxies know, %s s of settings.DRAIN_S and %s s of settings.REQUEST_TIMEOUT_S" (int .Values.terminationGracePeriodSeconds) (include "policy-server.text" $needed) (include "policy-server.text" $drain) (include "policy-server.text" $timeout)) -}}
{{- end -}}
{{- end -}}
