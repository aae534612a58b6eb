-- Argo CD's health of a ModelDeployment or a ModelPool. The resources follow kstatus, so this says what `kubectl wait` and Flux see:
-- a model that is at rest is healthy, since a request wakes it.
local hs = {status = "Progressing", message = "Waiting for the operator to see it."}

local status = obj.status
if status == nil or status.conditions == nil then
  return hs
end

if obj.metadata.generation ~= nil and status.observedGeneration ~= obj.metadata.generation then
  hs.message = "Waiting for the operator to see its latest change."
  return hs
end

local found = {}
for _, condition in ipairs(status.conditions) do
  found[condition.type] = condition
end

local function told(condition)
  if condition.message ~= nil and condition.message ~= "" then
    return condition.reason .. ": " .. condition.message
  end
  return condition.reason
end

if found.Reconciling ~= nil and found.Reconciling.status == "True" then
  hs.message = told(found.Reconciling)
elseif found.Stalled ~= nil and found.Stalled.status == "True" then
  hs.status = "Degraded"
  hs.message = told(found.Stalled)
elseif found.Ready ~= nil and found.Ready.status == "True" then
  hs.status = "Healthy"
  hs.message = told(found.Loaded or found.Ready)
elseif found.Ready ~= nil then
  hs.message = told(found.Ready)
end
return hs
