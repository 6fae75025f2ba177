{{- define "ternvl.name" -}}
{{- if contains "ternvl" .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-ternvl" .Release.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "ternvl.selector" -}}
app.kubernetes.io/name: ternvl
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ternvl.labels" -}}
{{ include "ternvl.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "ternvl.scheme" -}}
{{ if .Values.tls.existingSecret }}HTTPS{{ else }}HTTP{{ end }}
{{- end }}

{{/* The port with the metrics. The endpoint picker of an InferencePool reads them at the port of the requests. */}}
{{- define "ternvl.metricsPort" -}}
{{ if .Values.inferencePool.enabled }}http{{ else }}metrics{{ end }}
{{- end }}

{{/* Values that can each be right, but cannot work together. values.schema.json refuses the others. */}}
{{- define "ternvl.check" -}}
{{- $auto := .Values.autoscaling }}
{{- if and (ne $auto.kind "none") (gt (int $auto.min) (int $auto.max)) }}
{{- fail (printf "autoscaling.min is %v and autoscaling.max is %v, but min must not be larger than max." $auto.min $auto.max) }}
{{- end }}
{{- $pods := ternary (int .Values.replicas) (int $auto.min) (eq $auto.kind "none") }}
{{- if and (gt $pods 0) (ge (int .Values.podDisruptionBudget.maxUnavailable) (add 1 $pods | int)) }}
{{- fail (printf "podDisruptionBudget.maxUnavailable is %v, but there may be only %d pods." .Values.podDisruptionBudget.maxUnavailable $pods) }}
{{- end }}
{{- if and (hasPrefix "/models" .Values.model) (not .Values.models.existingClaim) }}
{{- fail (printf "model is %s, but models.existingClaim is empty, so nothing is mounted at /models; name a claim." .Values.model) }}
{{- end }}
{{- if and (hasPrefix "/" .Values.model) (not (hasPrefix "/models" .Values.model)) }}
{{- fail (printf "model is %s, but folders of models are mounted at /models; give a path below it." .Values.model) }}
{{- end }}
{{- if eq (int .Values.service.port) (int .Values.metrics.port) }}
{{- fail (printf "service.port and metrics.port are both %v, but must be two ports." .Values.metrics.port) }}
{{- end }}
{{- $ports := list .Values.service.port .Values.metrics.port .Values.kvEvents.port .Values.kvEvents.replayPort }}
{{- if and .Values.kvEvents.enabled (ne (len ($ports | uniq)) 4) }}
{{- fail (printf "service.port, metrics.port, kvEvents.port and kvEvents.replayPort are %s, but must be four ports." ($ports | join ", ")) }}
{{- end }}
{{- if and .Values.inferencePool.enabled .Values.tls.existingSecret }}
{{- fail "inferencePool.enabled and tls.existingSecret are both set, but gateways speak HTTP with the pods of a pool; end TLS at the gateway." }}
{{- end }}
{{- $most := ternary (int .Values.replicas) (int $auto.max) (eq $auto.kind "none") }}
{{- if and .Values.cache.existingClaim (gt $most 1) (not .Values.cache.isReadWriteMany) }}
{{- fail (printf "cache.existingClaim is %s, which up to %d pods would share; set cache.isReadWriteMany to true if that is its access mode." .Values.cache.existingClaim $most) }}
{{- end }}
{{- end }}
