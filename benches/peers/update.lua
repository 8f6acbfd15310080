-- Updates of backups, each time of the next VM, so that no update waits for another one of the same VM.
local vms = 512
local at = math.random(0, vms - 1)

request = function()
    at = (at + 1) % vms
    wrk.headers["Content-Type"] = "application/vnd.com.sun.cloud.Backup+json"
    wrk.headers["Accept"] = "*/*"
    return wrk.format("PUT", "/vms/vm" .. at .. "/backups/456", nil, '{"description":"changed"}')
end
