{{- define "opsin.name" -}}
{{- printf "%s" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels of an object. Argument: (dict "root" $ "component" NAME) */}}
{{- define "opsin.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{ include "opsin.selector" . }}
{{- end -}}

{{- define "opsin.selector" -}}
app.kubernetes.io/name: opsin
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "opsin.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "opsin.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Image of a component. Argument: (dict "root" $ "image" IMAGE) */}}
{{- define "opsin.image" -}}
image: {{ printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) | quote }}
imagePullPolicy: {{ .image.pullPolicy }}
{{- end -}}

{{- define "opsin.redisSecret" -}}
{{- if .Values.redis.trial.enabled -}}
{name: {{ include "opsin.name" . }}-redis, key: url}
{{- else -}}
{name: {{ required "redis.urlSecret.name names the Secret with the URL of Redis; or set redis.trial.enabled=true" .Values.redis.urlSecret.name | quote }}, key: {{ .Values.redis.urlSecret.key | quote }}}
{{- end -}}
{{- end -}}

{{/* Settings of a container. Argument: (dict "root" $ "own" SETTINGS "given" SETTINGS), the later given precedence */}}
{{- define "opsin.env" -}}
{{- range $name := list "OPSIN_DRAIN_DELAY" "OPSIN_DRAIN_TIMEOUT" }}
{{- if or (hasKey $.given $name) (hasKey $.root.Values.settings $name) }}
{{- fail (printf "settings.%s: use drainDelay and drainTimeout of the gateway or pool, which also set terminationGracePeriodSeconds" $name) }}
{{- end }}
{{- end }}
- name: OPSIN_REDIS_URL
  valueFrom: {secretKeyRef: {{ include "opsin.redisSecret" .root }}}
{{- if .root.Values.tracing.endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ .root.Values.tracing.endpoint | quote }}}
- {name: OTEL_TRACES_SAMPLER, value: parentbased_traceidratio}
- {name: OTEL_TRACES_SAMPLER_ARG, value: {{ .root.Values.tracing.samplerRatio | toString | quote }}}
- {name: OTEL_RESOURCE_ATTRIBUTES, value: "service.namespace={{ .root.Release.Name }}"}
{{- end }}
{{- range $name, $value := merge (dict) .given .root.Values.settings .own (dict "OPSIN_CELL" .root.Values.cell) }}
- {name: {{ $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- end -}}

{{/* What pods of gateways and workers have in common: no account, no privileges, spread over nodes. Argument: as opsin.labels */}}
{{- define "opsin.pod" -}}
automountServiceAccountToken: false
securityContext: {{- include "opsin.podSecurity" . | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "opsin.selector" . | nindent 8 }}
{{- end -}}

{{/* Argument: as opsin.labels */}}
{{- define "opsin.podDisruptionBudget" }}
{{- if .root.Values.podDisruptionBudgets.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "opsin.name" .root }}-{{ .component }}
  labels: {{- include "opsin.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{- include "opsin.selector" . | nindent 6 }}
{{- end }}
{{- end }}
