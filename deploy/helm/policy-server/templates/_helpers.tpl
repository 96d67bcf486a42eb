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
{{- fail "policy: give modelUri and schemaUri, or existingClaim, or configMap; not several" -}}
{{- end -}}
{{- if and $uris (not (and .Values.policy.modelUri .Values.policy.schemaUri)) -}}
{{- fail "policy: modelUri and schemaUri belong together" -}}
{{- end -}}
{{- if not $uris -}}
{{- if or .Values.policy.existingClaim .Values.policy.configMap -}}
/source
{{- else -}}
/opt/policy-server/examples/{{ .Values.policy.example }}
{{- end -}}
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
