import json

from bus.envelope import Envelope


def envelope_of(row):
    meta=json.loads(row.meta)
    return Envelope(id=row.id,type=row.type,version=row.type_version,kind=row.kind,body=row.payload,key=row.key,stream=row.stream,stream_version=row.version,position=row.position,time=row.recorded_at.isoformat(),correlation=row.correlation,causation=row.causation,tenant=row.tenant,principal=meta.get("principal","system"),traceparent=meta.get("traceparent",""))
