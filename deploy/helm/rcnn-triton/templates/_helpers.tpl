{{- define "rcnn.name" -}}
{{ (contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name)) | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "rcnn.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "rcnn.labels" -}}
{{ include "rcnn.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "rcnn.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion .Values.device) }}
{{- end }}

{{- /* Restrictions of each container. */ -}}
{{- define "rcnn.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* Seconds waited per second, summed over all steps: the average number of waiting requests. */ -}}
{{- define "rcnn.waitingQuery" -}}
sum(rate(nv_inference_queue_duration_us{namespace={{ .Release.Namespace | quote }},pod=~{{ printf "%s-.+" (include "rcnn.name" .) | quote }}}[1m])) / 1e6
{{- end }}
