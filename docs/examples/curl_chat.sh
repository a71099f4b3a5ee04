#!/bin/sh
# What is served, an answer, a stream, an answer of one kind of engine.  curl_chat.sh [MODEL] [KIND]
set -eu
url=${OPENAI_BASE_URL:-http://127.0.0.1:8000/v1}
key=${OPENAI_API_KEY:-none}
model=${1:-demo}

echo "== models"
curl -sS "$url/models" -H "Authorization: Bearer $key"

echo && echo "== an answer"
curl -sS "$url/chat/completions" -H "Authorization: Bearer $key" -H 'Content-Type: application/json' -d '{
  "model": "'"$model"'",
  "messages": [{"role": "user", "content": "Hello"}],
  "top_k": 40
}'

echo && echo "== a stream"
curl -sSN "$url/chat/completions" -H "Authorization: Bearer $key" -H 'Content-Type: application/json' -d '{
  "model": "'"$model"'",
  "messages": [{"role": "user", "content": "Hello"}],
  "stream": true,
  "stream_options": {"include_usage": true}
}'

# Only backends of that kind are asked. Without a second argument the field stays away.
echo "== from ${2:-any kind of} engine"
curl -sS "$url/chat/completions" -H "Authorization: Bearer $key" -H 'Content-Type: application/json' -d '{
  '"${2:+\"framework\": \"$2\",}"'
  "model": "'"$model"'",
  "messages": [{"role": "user", "content": "Hello"}],
  "max_tokens": 5
}'
echo
